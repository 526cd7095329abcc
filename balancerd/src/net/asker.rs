//! Who asks for something on this machine, as the kernel knows a process: for the log.

use std::fs;

/// A process, and its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) uid: u32,
    /// 0 for one that this process cannot see, and for the kernel.
    pub(crate) pid: i32,
    /// What it calls itself. It may be gone already.
    pub(crate) program: Option<String>,
}

impl Asker {
    /// The process with this number, which was of this user when it asked.
    pub(crate) fn new(uid: u32, pid: i32) -> Self {
        // In the kernel's memory, and 15 bytes at most: nothing to wait for.
        let program = (pid > 0).then(|| fs::read(format!("/proc/{pid}/comm")).ok()).flatten();
        let program = program.map(|name| String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned());
        Self { uid, pid, program }
    }

    /// The values of a line of the log: user, process, and program, as far as there are some.
    pub(crate) fn told(asker: Option<&Self>) -> (Option<u32>, Option<i32>, Option<&str>) {
        let program = asker.and_then(|asker| asker.program.as_deref());
        (asker.map(|asker| asker.uid), asker.map(|asker| asker.pid), program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_name_and_one_that_is_gone_is_not() {
        let own = Asker::new(0, std::process::id().cast_signed());
        assert!(own.program.is_some_and(|name| (1..=15).contains(&name.len())));
        assert_eq!(Asker::new(7, 0), Asker { uid: 7, pid: 0, program: None });
        assert_eq!(Asker::new(7, i32::MAX).program, None);
    }
}
