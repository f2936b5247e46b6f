//! Processes: whatever ends one is noticed, whatever starts one starts it clean, and the primary waits for nobody.
