import unittest

from handler import handle


class HandlerTest(unittest.TestCase):
    def test_says_hello(self):
        self.assertEqual(handle("GET", "/"), (200, "Hello from Python!\n"))

    def test_refuses_the_rest(self):
        self.assertEqual(handle("GET", "/nowhere")[0], 404)
        self.assertEqual(handle("POST", "/")[0], 405)
