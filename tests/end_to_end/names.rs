//! One name is one cluster, wherever its socket and its state are; and where these are when nobody says so.
