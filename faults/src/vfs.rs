//! The shim itself: every method hands on to the usual VFS, after asking the disk whether it may.
//!
//! SQLite gives a VFS raw memory of `szOsFile` bytes per file. Ours begins with a [`File`], behind which the usual
//! VFS has its own. Nothing here allocates per call, and no lock is held while the usual VFS works, except where a
//! record must be in the order of the calls.

use crate::log::{Event, FileId};
use crate::{Call, Fault, State};
use rusqlite::ffi;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What `pAppData` of our VFS points to. Never freed, as SQLite may hold a VFS as long as the process lives.
struct Shim {
    usual: *mut ffi::sqlite3_vfs,
    state: Arc<Mutex<State>>,
}

/// What SQLite takes for its file.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    shim: *const Shim,
    /// Which file, if it is one whose content matters.
    id: Option<FileId>,
}

const OWN_BYTES: usize = size_of::<File>().next_multiple_of(16);

pub(crate) fn register(state: Arc<Mutex<State>>) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("faulty-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let c_name = CString::new(name.clone()).expect("no zero byte");
    // SAFETY: the usual VFS lives as long as the process. Ours is leaked, so it does too, as do its name and its
    // application data. Copied methods that we do not replace only read the usual VFS's own fields through ours
    // (`pAppData`), so those that do so are replaced below.
    unsafe {
        let usual = ffi::sqlite3_vfs_find(std::ptr::null());
        assert!(!usual.is_null(), "SQLite has a usual VFS");
        let shim = Box::leak(Box::new(Shim { usual, state }));
        let own = i32::try_from(OWN_BYTES).expect("small");
        let vfs = ffi::sqlite3_vfs {
            iVersion: 1,
            szOsFile: (*usual).szOsFile + own,
            mxPathname: (*usual).mxPathname,
            pNext: std::ptr::null_mut(),
            zName: c_name.into_raw(),
            pAppData: std::ptr::from_mut(shim).cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: None,
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        };
        let code = ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0);
        assert_eq!(code, ffi::SQLITE_OK);
    }
    name
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

// SAFETY of all functions below: SQLite calls them with what it got from `register` and `open`, so `vfs` has a
// `Shim` for application data, and `file` is a `File` with a file of the usual VFS behind it.

unsafe fn shim<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a Shim {
    unsafe { &*(*vfs).pAppData.cast::<Shim>() }
}

unsafe fn usual_file(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    unsafe { file.cast::<u8>().add(OWN_BYTES).cast() }
}

/// Calls a method of the usual file.
macro_rules! usual {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let file = usual_file($file);
        ((*(*file).pMethods).$method.expect("the usual VFS has it"))(file $(, $argument)*)
    }};
}

/// Counts the call; if it fails, the code it fails with.
unsafe fn refused(file: *mut ffi::sqlite3_file, call: Call) -> Option<c_int> {
    unsafe {
        let ours = &*file.cast::<File>();
        ours.id?;
        let fault = (*ours.shim).state.lock().unwrap_or_else(|e| e.into_inner()).called(call)?;
        Some(match (fault, call) {
            (Fault::Full, _) => ffi::SQLITE_FULL,
            (Fault::ReadOnly, _) => ffi::SQLITE_READONLY,
            (Fault::Io, Call::Read) => ffi::SQLITE_IOERR_READ,
            (Fault::Io, Call::Write) => ffi::SQLITE_IOERR_WRITE,
            (Fault::Io, Call::Truncate) => ffi::SQLITE_IOERR_TRUNCATE,
            (Fault::Io, Call::Sync) => ffi::SQLITE_IOERR_FSYNC,
        })
    }
}

unsafe fn record(file: *mut ffi::sqlite3_file, event: impl FnOnce(FileId) -> Event) {
    unsafe {
        let ours = &*file.cast::<File>();
        if let Some(id) = ours.id {
            let mut state = (*ours.shim).state.lock().unwrap_or_else(|e| e.into_inner());
            let event = event(id);
            if matches!(event, Event::Sync(_)) {
                *state.syncs_of.entry(id).or_default() += 1;
            }
            state.record(|| event);
        }
    }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    unsafe {
        let shim = shim(vfs);
        let id = match flags {
            flags if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 => Some(FileId::Main),
            flags if flags & ffi::SQLITE_OPEN_WAL != 0 => Some(FileId::Wal),
            flags if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 => Some(FileId::Journal),
            _ => None,
        };
        let ours = file.cast::<File>();
        ours.write(File { base: ffi::sqlite3_file { pMethods: std::ptr::null() }, shim, id });
        let usual = usual_file(file);
        (*usual).pMethods = std::ptr::null();
        let code = ((*shim.usual).xOpen.expect("opens"))(shim.usual, path, usual, flags, out);
        // SQLite closes whatever has methods, even if opening failed.
        if !(*usual).pMethods.is_null() {
            (*ours).base.pMethods = &METHODS;
        }
        code
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, path: *const c_char, sync_dir: c_int) -> c_int {
    unsafe {
        let shim = shim(vfs);
        let code = ((*shim.usual).xDelete.expect("deletes"))(shim.usual, path, sync_dir);
        let path = CStr::from_ptr(path).to_bytes();
        let ids = [(&b"-wal"[..], FileId::Wal), (b"-journal", FileId::Journal)];
        let id = ids.iter().find(|(end, _)| path.ends_with(end)).map(|(_, id)| *id);
        if let Some(id) = id.filter(|_| code == ffi::SQLITE_OK) {
            let mut state = shim.state.lock().unwrap_or_else(|e| e.into_inner());
            state.record(|| Event::Delete(id));
            if sync_dir != 0 {
                state.record(|| Event::Sync(id));
            }
        }
        code
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, amount: c_int, offset: i64) -> c_int {
    unsafe { refused(file, Call::Read).unwrap_or_else(|| usual!(file, xRead, to, amount, offset)) }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, amount: c_int, offset: i64) -> c_int {
    unsafe {
        if let Some(code) = refused(file, Call::Write) {
            return code;
        }
        let code = usual!(file, xWrite, from, amount, offset);
        if code == ffi::SQLITE_OK {
            let bytes = std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(amount).unwrap_or(0));
            record(file, |id| Event::Write(id, u64::try_from(offset).unwrap_or(0), bytes.to_vec()));
        }
        code
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    unsafe {
        if let Some(code) = refused(file, Call::Truncate) {
            return code;
        }
        let code = usual!(file, xTruncate, size);
        if code == ffi::SQLITE_OK {
            record(file, |id| Event::Truncate(id, u64::try_from(size).unwrap_or(0)));
        }
        code
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    unsafe {
        if let Some(code) = refused(file, Call::Sync) {
            return code;
        }
        let code = usual!(file, xSync, flags);
        if code == ffi::SQLITE_OK {
            record(file, Event::Sync);
        }
        code
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { usual!(file, xClose) }
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    unsafe { usual!(file, xFileSize, size) }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { usual!(file, xLock, level) }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { usual!(file, xUnlock, level) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    unsafe { usual!(file, xCheckReservedLock, out) }
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, what: c_int, argument: *mut c_void) -> c_int {
    unsafe { usual!(file, xFileControl, what, argument) }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { usual!(file, xSectorSize) }
}

/// None: a disk that promises nothing.
unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    0
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    unsafe { usual!(file, xShmMap, page, size, extend, out) }
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    unsafe { usual!(file, xShmLock, offset, count, flags) }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    unsafe { usual!(file, xShmBarrier) }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    unsafe { usual!(file, xShmUnmap, delete) }
}

/// Methods of the usual VFS, on itself.
macro_rules! usual_vfs {
    ($vfs:expr, $method:ident $(, $argument:expr)*) => {{
        let usual = shim($vfs).usual;
        ((*usual).$method.expect("the usual VFS has it"))(usual $(, $argument)*)
    }};
}

unsafe extern "C" fn access(vfs: *mut ffi::sqlite3_vfs, path: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    unsafe { usual_vfs!(vfs, xAccess, path, flags, out) }
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    size: c_int,
    out: *mut c_char,
) -> c_int {
    unsafe { usual_vfs!(vfs, xFullPathname, path, size, out) }
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, size: c_int, out: *mut c_char) -> c_int {
    unsafe { usual_vfs!(vfs, xRandomness, size, out) }
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    unsafe { usual_vfs!(vfs, xSleep, microseconds) }
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    unsafe { usual_vfs!(vfs, xCurrentTime, out) }
}

unsafe extern "C" fn last_error(vfs: *mut ffi::sqlite3_vfs, size: c_int, out: *mut c_char) -> c_int {
    unsafe { usual_vfs!(vfs, xGetLastError, size, out) }
}
