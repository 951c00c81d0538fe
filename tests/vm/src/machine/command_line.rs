//! What a test may ask of its machine, and the emulator's arguments for it.

use std::ffi::OsString;
use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use super::Accel;
use crate::kernel::Variant;

/// The emulated processor: everything that the emulator knows, less five-level page tables. With
/// them and KASAN an interrupt in the milliseconds in which the kernel (7.3.4) collects the
/// processor's features is reported as a wild access in `rcu_is_watching`: for that moment the
/// kernel thinks that its page tables have four levels. Seen now and then, not in every boot.
const EMULATED_CPU: &str = "max,la57=off";

/// The IOMMU between the devices and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Iommu {
    /// Bus addresses are physical addresses.
    #[default]
    None,
    /// Intel's, in translated mode.
    Intel,
    /// AMD's, in translated mode.
    Amd,
}

/// A machine to boot. `..Options::default()` is two sockets, two nodes, one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Which kernel.
    pub(crate) kernel: Variant,
    /// How many PTDMA functions (0..=64).
    pub(crate) devices: usize,
    /// The NUMA node of function i is the i-th entry; when the list is shorter, the
    /// nodes take turns.
    pub(crate) device_nodes: Vec<usize>,
    /// The IOMMU.
    pub(crate) iommu: Iommu,
    /// NUMA nodes, each with an equal share of processors (1..=4).
    pub(crate) nodes: usize,
    /// Memory of each node, MiB.
    pub(crate) node_memory_mib: u64,
    /// Processors, one socket each.
    pub(crate) cpus: usize,
    /// The last node has no processor. The module `testtier` makes it the slower one.
    pub(crate) memory_only_node: bool,
    /// Count instructions: one virtual nanosecond is `2^-shift` instructions. Makes
    /// the guest deterministic and single threaded.
    pub(crate) icount: Option<u8>,
    /// Added to the kernel's command line.
    pub(crate) append: String,
    /// A server process for each function, so that one can be killed alone.
    pub(crate) separate_servers: bool,
    /// What kind of engine each function is, in turns, in the words of `ptdma_model::Forks`; the
    /// server's own choice if empty.
    pub(crate) machines: Vec<&'static str>,
    /// Added to the device server's command line.
    pub(crate) server: Vec<String>,
    /// Kernel modules of this tree to build and put into the image (see
    /// [`crate::image::MODULES`]).
    pub(crate) modules: Vec<&'static str>,
    /// Put the kernel's own tests of migration into the image.
    pub(crate) selftests: bool,
    /// A disk, `/dev/vda`, that takes seconds to write what memory moves in no time.
    pub(crate) slow_disk: bool,
}

/// The slow disk's file, beside the sockets, its size, and what it writes in a second.
pub(super) const SLOW_DISK: &str = "slow.img";
pub(super) const SLOW_DISK_BYTES: u64 = 32 << 20;
const SLOW_DISK_RATE: u64 = 512 << 10;

impl Default for Options {
    fn default() -> Self {
        Self {
            kernel: Variant::Fast,
            devices: 1,
            device_nodes: Vec::new(),
            iommu: Iommu::None,
            nodes: 2,
            node_memory_mib: 512,
            cpus: 2,
            memory_only_node: false,
            icount: None,
            append: String::new(),
            separate_servers: false,
            machines: Vec::new(),
            server: Vec::new(),
            modules: Vec::new(),
            selftests: false,
            slow_disk: false,
        }
    }
}

impl Options {
    /// The node that function `index` is on.
    pub(crate) fn node_of(&self, index: usize) -> usize {
        self.device_nodes
            .get(index)
            .copied()
            .unwrap_or(index % self.nodes.max(1))
    }

    /// The PCI address at which the guest sees function `index`: the firmware numbers
    /// buses in the order of the ports, from the node's bridge on.
    pub(crate) fn address_of(&self, index: usize) -> String {
        let node = self.node_of(index);
        let before = (0..index)
            .filter(|other| self.node_of(*other) == node)
            .count();
        format!("0000:{:02x}:00.0", bridge_bus(node) + 1 + before)
    }

    /// The kernel's command line.
    pub(super) fn kernel_arguments(&self) -> String {
        let mut words = vec![
            "console=ttyS0",
            // The emulator runs with -no-reboot: a panic ends it, which is seen at once.
            "panic=-1",
            "random.trust_cpu=on",
            // Early in the boot the kernel expects ten ticks within a few milliseconds of
            // its own time, or panics; an emulated processor that has to wait for its turn
            // on a busy host misses that.
            "no_timer_check",
        ];
        if self.kernel == Variant::Debug {
            // By itself KASAN reports once and is silent for the rest of the boot. A report is
            // five KiB of log, and the stock driver causes hundreds.
            words.extend(["kasan_multi_shot", "log_buf_len=8M"]);
            // A pattern in free pages, looked at when they are used again, shows an engine that
            // writes to freed memory: KASAN sees processors only. What is unmapped is out of an
            // engine's reach at once, and not when the IOMMU gets round to it.
            words.extend(["page_poison=1", "page_table_check=on", "iommu.strict=1"]);
        } else if self.icount.is_none() {
            // The emulator keeps its translations of a page of code until the guest writes to it,
            // and does not see devices of another process do that: a program whose code an engine
            // had moved to such a page ran what was there before, and crashed (once in 3 to 220
            // runs of a program that moves itself, with any migrator that uses engines; the bytes
            // in memory were right). So the guest writes to each page that it allocates; the debug
            // kernel's pattern does the same. Not where instructions are counted.
            words.push("init_on_alloc=1");
        }
        match self.iommu {
            Iommu::None => {}
            Iommu::Intel => words.extend(["intel_iommu=on", "iommu.passthrough=0"]),
            Iommu::Amd => words.extend(["amd_iommu=on", "iommu.passthrough=0"]),
        }
        if !self.append.is_empty() {
            words.push(&self.append);
        }
        words.join(" ")
    }

    /// The emulator's arguments. Socket and log names are relative to the folder that
    /// it is started in, so that no path needs quoting.
    pub(super) fn arguments(&self, accel: Accel, kernel: &Path, image: &Path) -> Vec<OsString> {
        let mut out: Vec<OsString> = Vec::new();
        let mut arg = |words: &[&str]| out.extend(words.iter().map(OsString::from));

        arg(&["-nodefaults", "-no-user-config", "-no-reboot"]);
        arg(&["-display", "none", "-name", "ptdma-test"]);
        let machine = match (self.iommu, accel) {
            // The interrupt remapping of an IOMMU needs the local APICs in user space.
            (Iommu::Intel | Iommu::Amd, Accel::Kvm) => "q35,kernel-irqchip=split",
            _ => "q35",
        };
        arg(&["-machine", machine]);
        // ACPI hot plug does not reach the buses of a pxb: leave slots to the kernel.
        arg(&[
            "-global",
            "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        ]);
        match (accel, self.icount) {
            (Accel::Kvm, _) => arg(&["-accel", "kvm", "-cpu", "host"]),
            (Accel::Tcg, None) => arg(&["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]),
            (Accel::Tcg, Some(shift)) => {
                arg(&["-accel", "tcg,thread=single", "-cpu", EMULATED_CPU]);
                // Who waits for a device must not see time jump to the end of a time limit.
                let sleep = if self.devices == 0 { "off" } else { "on" };
                arg(&["-icount", &format!("shift={shift},sleep={sleep}")]);
            }
        }
        arg(&["-smp", &format!("{0},sockets={0}", self.cpus)]);
        arg(&[
            "-m",
            &format!("{}M", self.node_memory_mib * self.nodes as u64),
        ]);
        for node in 0..self.nodes {
            // The device server maps guest memory from these descriptors.
            arg(&[
                "-object",
                &format!(
                    "memory-backend-memfd,id=mem{node},size={}M,share=on",
                    self.node_memory_mib
                ),
            ]);
            let with_processors = self.nodes - usize::from(self.memory_only_node);
            let cpus: String = (0..self.cpus)
                .filter(|cpu| cpu % with_processors.max(1) == node)
                .map(|cpu| format!(",cpus={cpu}"))
                .collect();
            arg(&[
                "-numa",
                &format!("node,nodeid={node},memdev=mem{node}{cpus}"),
            ]);
        }
        match self.iommu {
            Iommu::None => {}
            Iommu::Intel => arg(&["-device", "intel-iommu,caching-mode=on,intremap=on"]),
            Iommu::Amd => arg(&["-device", "amd-iommu,dma-remap=on,intremap=on"]),
        }

        arg(&["-chardev", "file,id=console,path=console.log"]);
        arg(&["-serial", "chardev:console"]);
        // The guest's second serial port: a byte on it wakes a machine that is suspended to idle.
        arg(&[
            "-chardev",
            "socket,id=line,path=line.sock,server=on,wait=off",
        ]);
        arg(&["-serial", "chardev:line"]);
        arg(&["-qmp", "unix:qmp.sock,server=on,wait=off"]);
        arg(&["-device", "virtio-serial-pci"]);
        arg(&["-chardev", "socket,id=agent,path=agent.sock"]);
        arg(&[
            "-device",
            &format!(
                "virtserialport,chardev=agent,name={}",
                ptdma_guest::PORT_NAME
            ),
        ]);
        arg(&["-device", "virtio-rng-pci"]);
        if self.slow_disk {
            let limits = json!({
                "qom-type": "throttle-group",
                "id": "slow",
                "limits": {"bps-write": SLOW_DISK_RATE},
            });
            arg(&["-object", &limits.to_string()]);
            let disk = json!({
                "driver": "throttle",
                "node-name": "slow-disk",
                "throttle-group": "slow",
                "file": {"driver": "file", "filename": SLOW_DISK},
            });
            arg(&["-blockdev", &disk.to_string()]);
            arg(&["-device", "virtio-blk-pci,drive=slow-disk"]);
        }

        if self.devices > 0 {
            for node in 0..self.nodes {
                let bus = bridge_bus(node);
                arg(&[
                    "-device",
                    &format!("pxb-pcie,id=pxb{node},bus=pcie.0,bus_nr={bus},numa_node={node}"),
                ]);
            }
            for index in 0..self.devices {
                let node = self.node_of(index);
                arg(&[
                    "-device",
                    // No I/O window: 16 of them would use up the port space.
                    &format!(
                        "pcie-root-port,id=port{index},bus=pxb{node},chassis={0},slot={0},io-reserve=0",
                        index + 1
                    ),
                ]);
                arg(&["-device", &device(index)]);
            }
        }

        arg(&["-append", &self.kernel_arguments()]);
        out.push("-kernel".into());
        out.push(kernel.into());
        out.push("-initrd".into());
        out.push(image.into());
        out
    }
}

/// The bus of a node's bridge. Bus 0 is the board's own, and 32 root ports, each with a
/// bus behind it, fit between two nodes.
const fn bridge_bus(node: usize) -> usize {
    32 + 48 * node
}

/// The emulator's description of function `index`, for the command line and `device_add`.
fn device(index: usize) -> String {
    json!({
        "driver": "vfio-user-pci",
        "id": format!("ptdma{index}"),
        "bus": format!("port{index}"),
        "socket": {"type": "unix", "path": format!("ptdma{index}.sock")},
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(options: &Options, accel: Accel) -> Vec<String> {
        options
            .arguments(accel, Path::new("/k"), Path::new("/i"))
            .into_iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn functions_are_on_the_nodes_that_were_asked_for() {
        let options = Options {
            devices: 3,
            device_nodes: vec![1, 1],
            ..Options::default()
        };
        assert_eq!(
            [0, 1, 2].map(|index| options.node_of(index)),
            [1, 1, 0],
            "the list first, then turns"
        );
        assert_eq!(
            [0, 1, 2].map(|index| options.address_of(index)),
            ["0000:51:00.0", "0000:52:00.0", "0000:21:00.0"]
        );
        let words = words(&options, Accel::Tcg);
        assert!(
            words
                .iter()
                .any(|word| word.starts_with("pcie-root-port,id=port0,bus=pxb1,"))
        );
        assert!(
            words
                .iter()
                .any(|word| word.starts_with("pcie-root-port,id=port2,bus=pxb0,"))
        );
    }

    #[test]
    fn the_default_machine_has_two_sockets_and_two_nodes() {
        let words = words(&Options::default(), Accel::Tcg);
        assert!(words.contains(&"2,sockets=2".to_owned()));
        assert!(words.contains(&"node,nodeid=1,memdev=mem1,cpus=1".to_owned()));
        assert!(!words.iter().any(|word| word.contains("iommu")));
    }

    #[test]
    fn a_node_may_have_memory_only() {
        let options = Options {
            memory_only_node: true,
            ..Options::default()
        };
        let words = words(&options, Accel::Tcg);
        assert!(words.contains(&"node,nodeid=0,memdev=mem0,cpus=0,cpus=1".to_owned()));
        assert!(words.contains(&"node,nodeid=1,memdev=mem1".to_owned()));
    }

    #[test]
    fn an_iommu_comes_before_the_devices_and_is_translated() {
        let options = Options {
            iommu: Iommu::Intel,
            ..Options::default()
        };
        let words = words(&options, Accel::Kvm);
        let position = |start: &str| words.iter().position(|word| word.starts_with(start));
        assert!(position("intel-iommu") < position("pxb-pcie"));
        assert!(position("q35,kernel-irqchip=split").is_some());
        assert!(options.kernel_arguments().contains("iommu.passthrough=0"));
    }

    #[test]
    fn counting_instructions_is_single_threaded() {
        let options = Options {
            icount: Some(0),
            ..Options::default()
        };
        let with_device = words(&options, Accel::Tcg);
        assert!(with_device.contains(&"tcg,thread=single".to_owned()));
        assert!(with_device.contains(&"shift=0,sleep=on".to_owned()));
        let alone = Options {
            devices: 0,
            ..options
        };
        assert!(words(&alone, Accel::Tcg).contains(&"shift=0,sleep=off".to_owned()));
    }
}
