;; (component)
(; (; ;) ;)(component)