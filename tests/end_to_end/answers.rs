//! What is answered, noticed and logged at the edges of HTTP.
