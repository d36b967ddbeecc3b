//! Locks, atomics and threads of the whole crate, so that a model checker's versions can replace them.
//!
//! Under `--cfg shuttle` everything here is [shuttle](https://docs.rs/shuttle)'s; otherwise locks are
//! `parking_lot`'s and the rest is `std`'s. In the checker a timed wait never times out, so nothing may
//! depend on one for its progress.

pub(crate) use imp::*;

/// Keeps its content on cache lines of its own, away from what another core writes
/// (two 64-byte lines: adjacent-line prefetch works on pairs).
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(not(shuttle))]
mod imp {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use std::thread::{Builder as ThreadBuilder, JoinHandle, current as current_thread, yield_now};
    pub(crate) use std::thread_local;

    /// Cores this process may run on; spinning makes no sense on one.
    pub(crate) fn cores() -> usize {
        use std::sync::OnceLock;
        static CORES: OnceLock<usize> = OnceLock::new();
        *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    }
}

#[cfg(shuttle)]
mod imp {
    pub(crate) use shuttle::hint::spin_loop;
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use shuttle::thread::{current as current_thread, yield_now};
    pub(crate) use shuttle::thread_local;
    use std::ops::{Deref, DerefMut};
    use std::sync::Arc;
    use std::time::Instant;

    /// One: the checker explores every interleaving, spinning only hides some.
    pub(crate) fn cores() -> usize {
        1
    }

    /// shuttle's thread builder, whose threads can say that they have finished.
    pub(crate) struct ThreadBuilder(shuttle::thread::Builder);

    impl ThreadBuilder {
        pub(crate) fn new() -> Self {
            Self(shuttle::thread::Builder::new())
        }
        pub(crate) fn name(self, name: String) -> Self {
            Self(self.0.name(name))
        }
        pub(crate) fn spawn(self, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
            let finished = Arc::new(AtomicBool::new(false));
            let mark = Arc::clone(&finished);
            let inner = self.0.spawn(move || {
                work();
                mark.store(true, Ordering::SeqCst);
            })?;
            Ok(JoinHandle { inner, finished })
        }
    }

    pub(crate) struct JoinHandle<T> {
        inner: shuttle::thread::JoinHandle<T>,
        finished: Arc<AtomicBool>,
    }

    impl<T> JoinHandle<T> {
        pub(crate) fn join(self) -> std::thread::Result<T> {
            self.inner.join()
        }
        pub(crate) fn thread(&self) -> &shuttle::thread::Thread {
            self.inner.thread()
        }
        pub(crate) fn is_finished(&self) -> bool {
            self.finished.load(Ordering::SeqCst)
        }
    }

    /// shuttle's mutex with `parking_lot`'s signature.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    /// The guard is an `Option` only while a condvar borrows it.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(|e| e.into_inner())))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("guard in use")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("guard in use")
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    /// What a timed wait answers; here it never times out.
    pub(crate) struct WaitTimeoutResult;

    impl WaitTimeoutResult {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(shuttle::sync::Condvar::new())
        }
        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let inner = guard.0.take().expect("guard in use");
            guard.0 = Some(self.0.wait(inner).unwrap_or_else(|e| e.into_inner()));
        }
        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> WaitTimeoutResult {
            self.wait(guard);
            WaitTimeoutResult
        }
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
