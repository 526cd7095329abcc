//! The policies: how a pool picks a server for a client that no ring binds to one.
