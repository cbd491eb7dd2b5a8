#!/bin/busybox sh
# The first process of a machine of the tests. It runs each script that comes through the port, and sends back how it
# ended and what it said. Many may run at once.
export PATH=/tools/bin:/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /run/jobs /mnt /etc/mirror
while read -r module parameters; do
    insmod "/modules/$module.ko" $parameters
done </modules/load
mount -t ext4 -o ro /dev/vda /tools
ip link set lo up
for word in $(cat /proc/cmdline); do
    case $word in
    bed.name=*) hostname "${word#*=}" ;;
    bed.link=*)
        ip addr add "${word#*=}/24" dev eth0
        ip link set eth0 up
        ;;
    bed.outside=*)
        ip addr add "${word#*=}/24" dev eth1
        ip link set eth1 up
        ;;
    esac
done
ulimit -l unlimited
# A device may wait for emulated processors longer than the usual two minutes before it is suspect.
echo 300 >/proc/sys/kernel/hung_task_timeout_secs
ulimit -c 0
exec 3<>/dev/vport0p1
echo "0 0 $(echo ready | base64 -w0)" >&3
while read -r number script <&3; do
    (
        file=/run/jobs/$number
        echo "$script" | base64 -d >"$file.sh"
        sh "$file.sh" >"$file.said" 2>&1 </dev/null 3>&-
        code=$?
        (
            flock 9
            printf '%s %s %s\n' "$number" "$code" "$(base64 -w0 <"$file.said")" >&3
        ) 9>/run/jobs/lock
        rm -f "$file.sh" "$file.said"
    ) &
done
