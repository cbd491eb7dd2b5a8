# Sets up all that is measured in one virtual machine, side by side: DRBD from the kernel with both sides on it over
# loopback, two mirrords over loopback, in the clear and encrypted, and nbdkit without a replica. Nothing but the one that
# is measured has anything to do.
set -e
mkdir -p /run/lock /var/lock /var/lib/drbd
load-drbd minor_count=4
load-nbd nbds_max=4 max_part=0
ip addr add 127.0.0.2/8 dev lo

# DRBD, with metadata on the same disk, protocol C, and everything else at its defaults.
side=0
for disk in vdd vde; do
    drbdmeta --force $side v08 /dev/$disk internal create-md
    drbdsetup-84 new-resource side$side
    drbdsetup-84 new-minor side$side $side 0
    drbdsetup-84 attach $side /dev/$disk /dev/$disk internal
    side=$((side + 1))
done
drbdsetup-84 connect side0 ipv4:127.0.0.1:7789 ipv4:127.0.0.1:7790 --protocol=C
drbdsetup-84 connect side1 ipv4:127.0.0.1:7790 ipv4:127.0.0.1:7789 --protocol=C
until grep -q 'Connected .*Inconsistent/Inconsistent' /proc/drbd; do usleep 100000; done
# Both disks are empty: nothing to copy.
drbdsetup-84 new-current-uuid --clear-bitmap 0
drbdsetup-84 primary 0

# Ours, with metadata on the same disk, and everything else at its defaults.
mirrorctl keygen /etc/mirror/cluster.key
cat >/etc/mirror/cluster.toml <<EOF
[cluster]
name = "bench"
key_file = "/etc/mirror/cluster.key"

[[node]]
name = "server1"
[[node]]
name = "server2"
EOF
add_mirror() {
    cat >>/etc/mirror/cluster.toml <<EOF

[[mirror]]
name = "$1"
encryption = "$2"
initial_sync = "skip"

[mirror.on.server1]
data = "/dev/$3"
metadata = "internal"
replication = "127.0.0.1:$5"
device = "/dev/$6"
nbd = ["unix"]

[mirror.on.server2]
data = "/dev/$4"
metadata = "internal"
replication = "127.0.0.2:$5"
EOF
}
add_mirror plain off vdf vdg 29051 nbd0
add_mirror tls tls vdh vdi 29052 nbd1
for server in server1 server2; do
    for mirror in plain tls; do
        mirrorctl --node $server --run-dir /run/$server init $mirror
    done
    setsid mirrord --node $server --run-dir /run/$server >/run/$server.log 2>&1 &
    echo $! >/run/$server.pid
done
for mirror in plain tls; do
    ctl="mirrorctl --node server1 --run-dir /run/server1 --timeout 2m"
    $ctl wait $mirror --for connected
    $ctl promote --force $mirror
    $ctl wait $mirror --for synced
done
until [ "$(cat /sys/block/nbd0/size)" != 0 ] && [ "$(cat /sys/block/nbd1/size)" != 0 ]; do usleep 100000; done

# nbdkit, whose plugin writes to the page cache of the disk.
nbdkit --unix /run/nbdkit.sock /tools/bin/nbdkit-file-plugin.so /dev/vdc
nbd-client -unix /run/nbdkit.sock /dev/nbd2
