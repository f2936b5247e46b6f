//! What the program says: errors, help, tables, log lines.
