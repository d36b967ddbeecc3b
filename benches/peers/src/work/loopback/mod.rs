//! Servers on this machine, reached over loopback: published, consumed, acknowledged.
//!
//! Nothing here starts a server: `scripts/redis.sh` does, and says where it is.

pub mod redis;
mod resp;
