//! Servers on this machine, reached over loopback: published, consumed, acknowledged.
//!
//! Nothing here starts a server: `scripts/brokers.sh` does, and says where each is. Producer and consumer have a
//! connection each, made before the clock starts. A client for async code runs on its contestant's thread, in a
//! runtime of that thread's own.

#[cfg(feature = "brokers")]
pub mod jetstream;
#[cfg(feature = "brokers")]
pub mod rabbitmq;
pub mod redis;
mod resp;

/// How many publishes wait for the server's answer, and how many messages it sends ahead, where both are streams.
#[cfg(feature = "brokers")]
const IN_FLIGHT: usize = 256;

/// Where the server is, or why there is none.
fn address(variable: &str, server: &str) -> Result<String, String> {
    let hint = || format!("no {server}; put `../../scripts/brokers.sh` before the command, with {server} installed");
    std::env::var(variable).map_err(|_| hint())
}

#[cfg(feature = "brokers")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
