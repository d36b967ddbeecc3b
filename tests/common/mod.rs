//! What several test files need.
#![allow(dead_code)]

#[cfg(shuttle)]
pub(crate) mod interleavings;
#[cfg(unix)]
pub(crate) mod kill;
pub(crate) mod log;
#[cfg(feature = "sqlite")]
pub(crate) mod store;
pub(crate) mod truth;

use std::sync::Once;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What panics on purpose say, so that [`quiet`] keeps them off the screen.
pub(crate) const ON_PURPOSE: &str = "on purpose";

/// Its destructor panics.
#[derive(Debug, Clone)]
pub(crate) struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("{ON_PURPOSE}");
        }
    }
}

/// Prints no panic that a test wants.
pub(crate) fn quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let owned = || payload.downcast_ref::<String>().map(String::as_str);
            let words = payload.downcast_ref::<&str>().copied().or_else(owned);
            if words.is_some_and(|words| !words.contains(ON_PURPOSE)) {
                usual(info);
            }
        }));
    });
}

/// Runs `work` on a thread of its own; a hang becomes a failure instead of stopping the whole suite.
pub(crate) fn within<R: Send + 'static>(limit: Duration, work: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, answer) = mpsc::channel();
    let thread = thread::spawn(move || {
        let result = work();
        let _ = done.send(result);
    });
    match answer.recv_timeout(limit) {
        Ok(result) => {
            let _ = thread.join();
            result
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("still not done after {limit:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it sends before it ends"),
        },
    }
}

/// Waits until `is_so`, which other threads bring about; a generous limit, for machines under load.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "never came: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Threads of this process whose name starts with `prefix` (of which the system keeps 15 bytes).
#[cfg(target_os = "linux")]
pub(crate) fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("a Linux system has /proc");
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}
