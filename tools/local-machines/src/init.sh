#!/bin/busybox sh
# The first process of a machine: it makes the system, and then serves the port, or lets systemd do that.
export PATH=/tools/bin:/bin

# Runs each script that comes through the port, and sends back how it ended and what it said. Many may run at once.
serve_port() {
    ulimit -l unlimited
    ulimit -c 0
    mkdir -p /run/jobs
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
}

if [ "$1" = port ]; then
    serve_port
    exit
fi
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /mnt /etc/mirror /var/tmp
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
# A device may wait for emulated processors longer than the usual two minutes before it is suspect.
echo 300 >/proc/sys/kernel/hung_task_timeout_secs
grep -q bed.systemd /proc/cmdline || serve_port

echo 6d6972726f720000000000000000beda >/etc/machine-id
# Where units look for programs.
ln -sf /tools/bin/* /bin/
for program in mirrord mirror-agent mirror-witness; do
    mkdir -p "/etc/systemd/system/$program.service.d"
    cat >"/etc/systemd/system/$program.service.d/bed.conf" <<END
[Service]
StandardOutput=append:/run/$program.log
StandardError=inherit
# Of which emulated processors may need any.
TimeoutStartSec=infinity
END
done
cat >/etc/systemd/system/bed.service <<END
[Service]
ExecStart=/init port
LimitMEMLOCK=infinity
TasksMax=infinity
OOMScoreAdjust=-900
END
mkdir /etc/systemd/system/multi-user.target.wants
ln -s ../bed.service /etc/systemd/system/multi-user.target.wants/bed.service
ln -s /lib/systemd/system/multi-user.target /etc/systemd/system/default.target
exec /lib/systemd/systemd
