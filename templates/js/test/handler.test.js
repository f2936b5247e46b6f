import assert from 'node:assert/strict';
import { test } from 'node:test';

import { handle } from '../src/handler.js';

test('says hello', async () => {
    const response = await handle(new Request('http://localhost/'));
    assert.equal(response.status, 200);
    assert.equal(await response.text(), 'Hello from JavaScript!\n');
});

test('other paths are not found', async () => {
    const response = await handle(new Request('http://localhost/nowhere'));
    assert.equal(response.status, 404);
});
