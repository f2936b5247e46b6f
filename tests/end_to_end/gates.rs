//! Versions that are no better than the one before do not stay, and the way back is short.
