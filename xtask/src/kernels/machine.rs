//! A virtual machine with another kernel and this machine's files, which it can only read.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    process::{self, Running},
    setup::Kernel,
};

/// Its first process.
const INIT: &str = include_str!("init.sh");
/// What reaches the files; a kernel that has one of them built in has no module.
const MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];
const MEMORY: &str = "4G";
const CPUS: &str = "2";
/// How long whoever shares the files takes to begin with it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it takes to start one.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Kernel,
    /// What of QEMU's runs the guest's code.
    pub(super) accelerator: &'a str,
    pub(super) virtiofsd: &'a Path,
    /// Where what it takes and what it writes is kept.
    pub(super) folder: &'a Path,
}

impl Machine<'_> {
    /// Runs a shell script in the machine, hands over each line that it writes, and waits for its end.
    pub(super) fn run(&self, script: &str, longest: Duration, mut line: impl FnMut(&str)) -> Result<()> {
        let Self { folder, virtiofsd, .. } = self;
        self.pack(script).context("cannot pack the first file system")?;
        // In the machine's folder, which both ends are started in, since a socket's whole path may be too long; and like no other's,
        // since virtiofsd locks a file of that name.
        let name = format!("files-{}.socket", std::process::id());
        let socket = folder.join(&name);
        // It is there from the kernel before, or from a process of the same number that was killed.
        _ = fs::remove_file(&socket);
        let log = fs::File::create(folder.join("virtiofsd.log"))?;
        let mut share = Command::new(virtiofsd);
        share.current_dir(folder).arg(format!("--socket-path={name}"));
        share.args(["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"]);
        let mut share = Running::start(share.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))?;
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            if share.has_ended() || Instant::now() > deadline {
                bail!("virtiofsd does not share the files: see virtiofsd.log in {}", folder.display());
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        let mut qemu = Running::start(self.qemu(&name).stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let output = qemu.output().context("standard output is piped")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            // Nobody listens any more when the time is over.
            lines.map(|line| send.send(line)).take_while(Result::is_ok).for_each(drop);
        });
        let deadline = Instant::now() + longest;
        let ended = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => line(String::from_utf8_lossy(&bytes).trim_end()),
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    break Err(anyhow!("not done after {} minutes", longest.as_secs() / 60));
                }
            }
        };
        // A socket is of no use to anybody.
        _ = fs::remove_file(&socket);
        ended
    }

    fn qemu(&self, socket: &str) -> Command {
        let Self { kernel, accelerator, folder, .. } = self;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.current_dir(folder);
        // Without cmpxchg16b: a kernel died in the instruction after one, of flags that QEMU 7.2 had made up.
        qemu.args(["-accel", accelerator, "-cpu", "max,-cx16", "-smp", CPUS, "-m", MEMORY]);
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        // Files are shared by memory.
        qemu.arg("-object").arg(format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"));
        qemu.args(["-numa", "node,memdev=memory", "-chardev"]).arg(format!("socket,id=files,path={socket}"));
        qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=machine"]);
        qemu.args(["-serial", "file:console.log", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(self.initrd());
        qemu.args(["-append", "console=ttyS0 panic=-1 oops=panic"]);
        qemu
    }

    fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// busybox, the first process, the tests, and what it takes to reach all else.
    fn pack(&self, script: &str) -> Result<()> {
        let files = self.folder.join("files");
        if files.exists() {
            fs::remove_dir_all(&files)?;
        }
        for folder in ["bin", "dev", "proc"] {
            fs::create_dir_all(files.join(folder))?;
        }
        let busybox = process::which("busybox").context("busybox is installed")?;
        fs::copy(busybox, files.join("bin/busybox"))?;
        let modules = self.kernel.modules();
        fs::write(files.join("tests"), script)?;
        fs::write(files.join("init"), INIT.replace("$MODULES", &modules.display().to_string()))?;
        process::run(Command::new("chmod").arg("755").arg(files.join("init")))?;
        let list = fs::read_to_string(modules.join("modules.dep")).context("the kernel has no list of its modules")?;
        let inside = files.join("lib/modules").join(&self.kernel.version);
        for module in MODULES.iter().flat_map(|name| with_dependencies(&list, name)) {
            let to = inside.join(module);
            fs::create_dir_all(to.parent().context("a module lies in a folder")?)?;
            fs::copy(modules.join(module), to)?;
        }
        fs::create_dir_all(&inside)?;
        fs::write(inside.join("modules.dep"), list)?;
        let archive = fs::File::create(self.initrd())?;
        let pack = "find . | busybox cpio -o -H newc";
        process::run(Command::new("sh").args(["-c", pack]).current_dir(&files).stdout(archive))?;
        fs::remove_dir_all(&files).context("cannot remove what was packed")
    }
}

/// The files of a module and of those it needs, as `modules.dep` lists them.
fn with_dependencies<'a>(list: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let end = format!("/{name}.ko");
    let line = list.lines().find(|line| line.split(':').next().is_some_and(|file| file.ends_with(&end)));
    line.into_iter().flat_map(|line| line.split([':', ' ']).filter(|file| !file.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_with_those_it_needs_and_one_that_is_built_in_with_none() {
        let list = "a/overlay.ko:\na/virtiofs.ko: a/fuse.ko b/virtio.ko\n";
        let files = |name| with_dependencies(list, name).collect::<Vec<_>>();
        assert_eq!(files("virtiofs"), ["a/virtiofs.ko", "a/fuse.ko", "b/virtio.ko"]);
        assert_eq!(files("overlay"), ["a/overlay.ko"]);
        assert!(files("virtio").is_empty());
    }
}
