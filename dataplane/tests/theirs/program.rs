//! Programs that are not ours and know nothing of ours, on hooks that we use, too: `program.py` says which.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

const PROGRAM: &str = include_str!("program.py");

/// A program of somebody else's; taken off when dropped.
pub(crate) struct Theirs {
    child: Child,
    asked: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
}

impl Theirs {
    /// Attaches one to a cgroup.
    pub(crate) fn on_cgroup(folder: &Path, args: &[&str]) -> Self {
        Self::attach(Command::new(PYTHON), &[&["cgroup", folder.to_str().unwrap()], args].concat())
    }

    /// Attaches one by a command that runs Python.
    pub(crate) fn attach(mut python: Command, args: &[&str]) -> Self {
        let mut child =
            python.args(["-c", PROGRAM]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(child.stdout.take().unwrap());
        let asked = child.stdin.take();
        let mut theirs = Self { child, asked, told };
        assert_eq!(theirs.line(), "attached", "{args:?}");
        theirs
    }

    /// How often it has run.
    pub(crate) fn runs(&mut self) -> u64 {
        self.asked.as_mut().unwrap().write_all(b"\n").unwrap();
        self.line().parse().unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        drop(self.asked.take());
        // It ends when it has taken its program off.
        _ = self.child.wait();
    }
}

/// Not a developer's own, which may lack modules.
pub(crate) const PYTHON: &str = "/usr/bin/python3";
