// The entry point of the component: passes each request to the handler.

import { handle } from './handler.js';

addEventListener('fetch', (event) => event.respondWith(handle(event.request)));
