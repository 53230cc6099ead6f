#!/bin/busybox sh
# The first process of a virtual machine: makes this machine's files its own, to read, with its own changes in memory, and
# runs `tests` there. The kernel's messages go to the first port, what the tests write to the second.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
stty raw </dev/ttyS1

# What the kernel has built in has no file here.
for module in virtio_pci virtiofs overlay; do
    modprobe "$module" 2>/dev/null
done
mkdir -p /machine /changes /root
mount -t virtiofs -o ro machine /machine || echo "no files from outside"
mount -t tmpfs -o size=75% changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/machine,upperdir=/changes/upper,workdir=/changes/work root /root

cd /root
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
mount -t devpts pts dev/pts
mount -t tmpfs shm dev/shm
mount -t tmpfs run run
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf

# Modules are loaded by the kernel as they are asked for, but for one, which nodes of Kubernetes load.
mkdir -p usr/lib/modules
ln -s "$MODULES" "usr/lib/modules/$(uname -r)"
ln -s /usr/bin/busybox run/modprobe
echo /run/modprobe >proc/sys/kernel/modprobe
chroot . /run/modprobe br_netfilter
ifconfig lo up
# Before Linux 5.11 maps count as locked memory.
ulimit -l unlimited
ulimit -n 1000000
cp /tests run/tests
exec switch_root . /bin/sh /run/tests
