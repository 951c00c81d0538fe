# shellcheck shell=sh disable=SC3045 # of busybox, whose read has -t
# Suspends the guest with a load at work, and looks at what is left of the module.
#
# Runs all by itself: after the first resume the host cannot reach the agent any more, so what
# there is to say goes to the kernel's log, and what it is told comes over the second serial port.
# suspend.rs sets the variables in capitals. The migrator is loaded and at work, and faults are in
# place.

parameters=/sys/module/ptdma_migrator/parameters
functions=/sys/bus/pci/devices
tracing=/sys/kernel/tracing
line=ttyS1

say() {
	echo "ptdma-suspend: $*" > /dev/kmsg
}

fail() {
	touch /tmp/awake
	say "end failed: $*"
	exit 1
}

migrated() {
	cat $parameters/folios_migrated
}

# The load is under way: the engines copy for it. A batch of the debug kernel takes seconds.
moving() {
	before=$(migrated)
	for _ in $(seq 600); do
		[ "$(migrated)" -gt "$before" ] && return
		sleep 0.1
	done
	fail "nothing is migrated $*"
}

# A count of the channels, of all that are bound.
sum() {
	total=0
	for count in /sys/bus/pci/drivers/ptdma_migrator/0*/ptdma/"$1"; do
		total=$((total + $(cat "$count")))
	done
	echo $total
}

# The host says this word.
told() {
	read -r -t 300 word <&3 || fail "the host does not say $1"
	[ "$word" = "$1" ] || fail "the host says $word instead of $1"
}

exec 3<> /dev/$line
case $HOW in
idle)
	state=freeze
	echo enabled > /sys/class/tty/$line/power/wakeup || fail "$line cannot wake the machine"
	# The host waits for the kernel's word that it is about to stand still.
	echo 1 > /sys/power/pm_debug_messages
	echo 8 > /proc/sys/kernel/printk
	echo N > /sys/module/printk/parameters/console_suspend
	;;
ram)
	state=mem
	echo deep > /sys/power/mem_sleep || fail "the machine cannot suspend to RAM"
	;;
esac
# User space stands still only between two calls, each of which is long on a debug kernel.
echo 60000 > /sys/power/pm_freeze_timeout
echo 1 > $tracing/events/ptdma_migrator/ptdma_recovery/enable || fail "no trace events"
slept=$(cat /sys/power/suspend_stats/success)
recoveries=$(sum recoveries)

mover --folio 4K --bytes 8M --for-ms 600000 --until /tmp/awake --movers 2 --writers 1 \
	> /tmp/load 2>&1 &
load=$!
woken=
for suspend in $(seq "$TIMES"); do
	moving "before suspend $suspend of $TIMES"
	# Not earlier: the module would make use of it.
	[ -z "$MAY_RESET" ] || echo default > "$functions/$MAY_RESET/reset_method"
	say "about to suspend $suspend of $TIMES"
	told suspend
	echo "$state" > /sys/power/state ||
		fail "suspend $suspend of $TIMES: $(grep . /sys/power/suspend_stats/last_* | tr '\n' ' ')"
	say "awake from suspend $suspend of $TIMES"
	if [ "$HOW" = idle ]; then
		told wake
		irq=$(cat /sys/power/pm_wakeup_irq)
		woken="$woken${woken:+,}$(grep -c "^ *$irq:.*$line" /proc/interrupts)"
	fi
done
moving "after the last resume"
touch /tmp/awake
wait $load || fail "the load: $(tail -n 1 /tmp/load)"
slept=$(($(cat /sys/power/suspend_stats/success) - slept))

before=$(migrated)
mover --folio 4K --bytes 8M --rounds 2 > /tmp/after 2>&1 ||
	fail "the mover after the last resume: $(tail -n 1 /tmp/after)"
after=$(($(migrated) - before))

echo 1 > $parameters/selftest || fail "the self-test: $(tr '\n' ' ' < $parameters/selftest)"
passed=$(grep -c 'passed$' $parameters/selftest)
quarantined=$(cat $parameters/folios_quarantined)
recoveries=$(($(sum recoveries) - recoveries))
stays=$(sum head_stays)

# Of some functions the host wants to know whether they were reset, and may use the bus.
resets=
masters=
for function in $WATCHED; do
	channel=$(cat "$functions/$function/ptdma/index")
	count=$(grep -c "chan=$channel step=reset rc=0" $tracing/trace)
	command=$(od -An -tu1 -j4 -N1 "$functions/$function/config")
	resets="$resets${resets:+,}$count"
	masters="$masters${masters:+,}$((command >> 2 & 1))"
done

echo 0 > $parameters/offloading
rmmod ptdma_migrator || fail "the module stays"
say "end {\"slept\":$slept,\"after\":$after,\"passed\":$passed,\"quarantined\":$quarantined,\
\"recoveries\":$recoveries,\"stays\":$stays,\
\"woken\":[$woken],\"resets\":[$resets],\"masters\":[$masters]}"
