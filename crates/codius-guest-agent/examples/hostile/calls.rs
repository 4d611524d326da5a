//! System calls by their numbers.
#![expect(unsafe_code, reason = "calls that no library makes for us")]

use std::io;

/// Makes a call. Pointers are given as numbers; the caller sees to it that they point to something that lives
/// until the call is over.
pub(crate) fn call(number: libc::c_long, arguments: &[usize]) -> io::Result<i64> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: none of the calls of this program writes to memory but into buffers that it was given for it,
    // and what a call does to this process beside that is the point of the attempt.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Runs `work` in a process of its own, for attempts that change or end it. Says how it ended.
pub(crate) fn apart(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: this program has one thread, so that the child may do anything.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        let code = match work() {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(255),
        };
        // SAFETY: ends this process, and nothing of it is needed any more.
        unsafe { libc::_exit(code) }
    }
    let mut status = 0;
    // SAFETY: the status outlives the call.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        return Err(io::Error::other(format!("killed by signal {signal}")));
    }
    match libc::WEXITSTATUS(status) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// `getpid` as a 32-bit program calls it.
pub(crate) fn old_call() -> io::Result<()> {
    let result: i32;
    // SAFETY: call 20 of the 32-bit ABI takes nothing and gives a number in eax.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => result, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _);
    }
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(())
    }
}
