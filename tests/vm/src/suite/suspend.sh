# Suspends the guest with a load at work, and looks at what is left of the module.
#
# Runs all by itself: after the first resume the host cannot reach the agent any more, so what
# there is to say goes to the kernel's log. suspend.rs sets the variables in capitals.
# The migrator is loaded and at work, and faults are in place.

parameters=/sys/module/ptdma_migrator/parameters
functions=/sys/bus/pci/devices
tracing=/sys/kernel/tracing

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
	for tenth in $(seq 600); do
		[ "$(migrated)" -gt "$before" ] && return
		sleep 0.1
	done
	fail "nothing is migrated $*"
}

echo "$DELAY" > /sys/module/suspend/parameters/pm_test_delay
echo platform > /sys/power/pm_test || fail "the kernel cannot rehearse suspending"
# User space stands still only between two calls, each of which is long on a debug kernel.
echo 60000 > /sys/power/pm_freeze_timeout
echo 1 > $tracing/events/ptdma_migrator/ptdma_recovery/enable || fail "no trace events"
slept=$(cat /sys/power/suspend_stats/success)

mover --folio 4K --bytes 8M --for-ms 600000 --until /tmp/awake --movers 2 --writers 1 \
	> /tmp/load 2>&1 &
load=$!
for suspend in $(seq "$TIMES"); do
	moving "before suspend $suspend of $TIMES"
	# Not earlier: the module would make use of it.
	[ -z "$MAY_RESET" ] || echo default > $functions/$MAY_RESET/reset_method
	echo freeze > /sys/power/state ||
		fail "suspend $suspend of $TIMES: $(grep . /sys/power/suspend_stats/last_* | tr '\n' ' ')"
	say "awake from suspend $suspend of $TIMES"
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

# Of some functions the host wants to know whether they were reset, and may use the bus.
resets=
masters=
for function in $WATCHED; do
	channel=$(cat $functions/$function/ptdma/index)
	count=$(grep -c "chan=$channel step=reset rc=0" $tracing/trace)
	command=$(od -An -tu1 -j4 -N1 $functions/$function/config)
	resets="$resets${resets:+,}$count"
	masters="$masters${masters:+,}$((command >> 2 & 1))"
done

echo 0 > $parameters/offloading
rmmod ptdma_migrator || fail "the module stays"
say "end {\"slept\":$slept,\"after\":$after,\"passed\":$passed,\"quarantined\":$quarantined,\
\"resets\":[$resets],\"masters\":[$masters]}"
