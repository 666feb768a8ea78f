# PID 1 of the guest, on the machine's root by hostfs, read-only. Before it: the environment, the folder, COMMAND, SHARED, DONE.
# tty0 is the kernel's and the runner's log, tty1 what the command says.
set -e
mount -t proc guest /proc
echo 125 > /proc/exitcode
end() { echo o > /proc/sysrq-trigger; sleep 60; }
trap end EXIT
exec < /dev/null > /dev/tty1 2>&1
stty -F /dev/tty1 -opost

mount -t tmpfs -o mode=0755 guest /run
mkdir /run/upper /run/work /run/root
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work guest /run/root
cd /run/root
mount -t proc guest proc
mount -t sysfs guest sys
mount -t cgroup2 guest sys/fs/cgroup
mount -t bpf guest sys/fs/bpf
mount -t devtmpfs guest dev
ln -s /proc/self/fd dev/fd
for fd in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${fd%:*}" "dev/${fd#*:}"; done
mkdir dev/pts dev/shm
mount -t devpts -o ptmxmode=0666 guest dev/pts
for folder in dev/shm tmp var/tmp; do mount -t tmpfs -o mode=1777 guest $folder; done
mount -t tmpfs -o mode=0755 guest run
mkdir run/lock run/netns run/old
for path in $SHARED; do
  mkdir -p ".$path"
  mount -t overlay -o "lowerdir=$path,upperdir=$(mktemp -d /run/upper.XXXX),workdir=$(mktemp -d /run/work.XXXX)" guest ".$path"
done
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old

hostname testcni-guest
ip link set lo up
echo "Linux $(uname -r)"
cd "$FOLDER"
set +e
(eval "$COMMAND")
echo $? > /proc/exitcode
echo "$DONE" > /dev/tty0
