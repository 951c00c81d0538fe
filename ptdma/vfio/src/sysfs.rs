//! Functions as sysfs shows them: finding them, taking them from drivers, giving them back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::address::PciAddress;
use crate::error::Error;

/// Vendor and device number of PTDMA, as sysfs writes them.
const VENDOR: &str = "0x1022";
const DEVICE: &str = "0x1498";
/// The driver that hands functions to user space.
pub(crate) const VFIO_DRIVER: &str = "vfio-pci";
/// Where the kernel has the files of VFIO groups.
pub(crate) const VFIO_FOLDER: &str = "/dev/vfio";

/// A PTDMA function of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub address: PciAddress,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group; none if no IOMMU translates for it.
    pub group: Option<u32>,
    /// Its NUMA node, if the firmware names one.
    pub node: Option<u16>,
}

/// Lists the PTDMA functions of this machine, by address. Changes nothing and needs no rights.
///
/// # Errors
///
/// [`Error::System`] if sysfs cannot be read.
pub fn list() -> Result<Vec<Candidate>, Error> {
    Sysfs::new().list()
}

/// Takes a function from its driver and gives it to vfio-pci; returns the driver that had it.
///
/// The driver's own work on the function ends. Needs root. A function that vfio-pci has already
/// is left as it is.
///
/// # Errors
///
/// Among others [`Error::NotPtdma`], [`Error::NoIommu`], [`Error::NoPermission`] and
/// [`Error::DriverRefused`] (the module vfio-pci is not loaded). The function is back with its
/// driver then, as far as the kernel allows.
pub fn take(address: PciAddress) -> Result<Option<String>, Error> {
    Sysfs::new().take(address)
}

/// Takes a function from vfio-pci, and has the kernel choose a driver for it, as at boot; returns
/// the driver that has it now.
///
/// Needs root. The kernel waits for the function to be closed, so a function that is open
/// anywhere is refused.
///
/// # Errors
///
/// [`Error::InUse`], [`Error::NoPermission`], and others of the system.
pub fn give_back(address: PciAddress) -> Result<Option<String>, Error> {
    Sysfs::new().give_back(address)
}

/// What became of a function-level reset that the kernel was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetResult {
    /// The kernel has reset the function, and it answered.
    Done,
    /// The function has no function-level reset.
    Absent,
    /// The kernel has tried, and failed: the function may be lost.
    Failed,
}

/// Keeps the kernel from resetting a function, when it is opened and closed too: for a function of
/// which nobody knows whether it comes back from its reset. Dropping it allows resets again.
#[derive(Debug)]
pub struct ResetsOff {
    address: PciAddress,
}

impl ResetsOff {
    /// Switches resets of a function off. Needs root, and Linux 5.15 or newer.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`] and others of the system.
    pub fn new(address: PciAddress) -> Result<Self, Error> {
        // A line of no words: no method.
        Sysfs::new().set_reset_method(address, "\n")?;
        Ok(Self { address })
    }

    /// Has the kernel do a function-level reset, nothing else, and keeps resets off afterwards. The
    /// kernel restores configuration space, and waits up to a minute for the function to answer.
    /// Interrupts and bus mastering are as they were.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`] and others of the system.
    pub fn reset_once(&self) -> Result<ResetResult, Error> {
        let sysfs = Sysfs::new();
        let reset = sysfs.function(self.address).join("reset");
        if sysfs.set_reset_method(self.address, "flr\n").is_err() || !reset.exists() {
            sysfs.set_reset_method(self.address, "\n")?;
            return Ok(ResetResult::Absent);
        }
        let done = fs::write(&reset, "1\n");
        sysfs.set_reset_method(self.address, "\n")?;
        Ok(match done {
            Ok(()) => ResetResult::Done,
            Err(_) => ResetResult::Failed,
        })
    }
}

impl Drop for ResetsOff {
    fn drop(&mut self) {
        // A function that is gone has nothing to allow.
        let _ = Sysfs::new().set_reset_method(self.address, "default\n");
    }
}

/// The PCI bus in sysfs.
pub(crate) struct Sysfs {
    root: PathBuf,
    groups: PathBuf,
}

impl Sysfs {
    pub(crate) fn new() -> Self {
        Self {
            root: PathBuf::from("/sys/bus/pci"),
            groups: PathBuf::from(VFIO_FOLDER),
        }
    }

    fn function(&self, address: PciAddress) -> PathBuf {
        self.root.join("devices").join(address.to_string())
    }

    fn list(&self) -> Result<Vec<Candidate>, Error> {
        let folder = self.root.join("devices");
        let entries = fs::read_dir(&folder).map_err(|e| Error::about(&folder, "list", e))?;
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let Some(address) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A function that goes away meanwhile is no error.
            if self.ids(address).is_ok_and(|ids| is_ptdma(&ids)) {
                found.push(self.candidate(address)?);
            }
        }
        found.sort_by_key(|candidate| candidate.address);
        Ok(found)
    }

    fn ids(&self, address: PciAddress) -> io::Result<(String, String)> {
        let read = |name: &str| fs::read_to_string(self.function(address).join(name));
        Ok((
            read("vendor")?.trim().to_owned(),
            read("device")?.trim().to_owned(),
        ))
    }

    fn driver(&self, address: PciAddress) -> Option<String> {
        link_name(&self.function(address).join("driver"))
    }

    fn candidate(&self, address: PciAddress) -> Result<Candidate, Error> {
        let folder = self.function(address);
        let node = fs::read_to_string(folder.join("numa_node")).ok();
        Ok(Candidate {
            address,
            driver: self.driver(address),
            group: link_name(&folder.join("iommu_group")).and_then(|name| name.parse().ok()),
            // -1 where the firmware names none.
            node: node.and_then(|text| text.trim().parse().ok()),
        })
    }

    /// A function that is a PTDMA engine, whoever has it.
    pub(crate) fn engine(&self, address: PciAddress) -> Result<Candidate, Error> {
        if !self.function(address).is_dir() {
            return Err(Error::NoSuchFunction(address));
        }
        let ids = self
            .ids(address)
            .map_err(|e| Error::about(&self.function(address), "read", e))?;
        if !is_ptdma(&ids) {
            return Err(Error::NotPtdma {
                address,
                ids: format!("{}:{}", ids.0, ids.1).replace("0x", ""),
            });
        }
        self.candidate(address)
    }

    /// Functions of a group that belong to other drivers than vfio-pci. Bridges do not count.
    pub(crate) fn in_the_way(&self, address: PciAddress) -> Vec<(PciAddress, String)> {
        let folder = self.function(address).join("iommu_group/devices");
        let Ok(entries) = fs::read_dir(folder) else {
            return Vec::new();
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|other| Some((other, self.driver(other)?)))
            .filter(|(_, driver)| driver != VFIO_DRIVER && driver != "pcieport")
            .collect();
        found.sort();
        found
    }

    fn set_reset_method(&self, address: PciAddress, methods: &str) -> Result<(), Error> {
        self.engine(address)?;
        write(&self.function(address).join("reset_method"), methods)
    }

    fn take(&self, address: PciAddress) -> Result<Option<String>, Error> {
        let candidate = self.engine(address)?;
        if candidate.group.is_none() {
            return Err(Error::NoIommu(address));
        }
        if candidate.driver.as_deref() == Some(VFIO_DRIVER) {
            return Ok(candidate.driver);
        }
        self.override_driver(address, VFIO_DRIVER)?;
        let taken = self.rebind(address).and_then(|driver| match driver {
            Some(driver) if driver == VFIO_DRIVER => Ok(()),
            driver => Err(Error::DriverRefused {
                address,
                wanted: VFIO_DRIVER.to_owned(),
                driver,
            }),
        });
        if taken.is_err() {
            // The first error is what counts.
            let _ = self.override_driver(address, "");
            let _ = self.rebind(address);
        }
        taken.map(|()| candidate.driver)
    }

    fn give_back(&self, address: PciAddress) -> Result<Option<String>, Error> {
        let candidate = self.engine(address)?;
        if let Some(group) = candidate.group {
            self.is_free(address, group)?;
        }
        self.override_driver(address, "")?;
        if candidate.driver.as_deref() == Some(VFIO_DRIVER) {
            return self.rebind(address);
        }
        Ok(candidate.driver)
    }

    /// Whether nobody has the group open: it can be opened once at a time.
    fn is_free(&self, address: PciAddress, group: u32) -> Result<(), Error> {
        let path = self.groups.join(group.to_string());
        match fs::File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(Error::InUse(address)),
            // Absent: vfio-pci has no function of it.
            _ => Ok(()),
        }
    }

    fn override_driver(&self, address: PciAddress, driver: &str) -> Result<(), Error> {
        // A line of no characters takes the wish back.
        write(
            &self.function(address).join("driver_override"),
            &format!("{driver}\n"),
        )
    }

    /// Unbinds a function and has the kernel look for a driver; returns the one that it found.
    fn rebind(&self, address: PciAddress) -> Result<Option<String>, Error> {
        let name = address.to_string();
        let driver = self.function(address).join("driver");
        if driver.exists() {
            write(&driver.join("unbind"), &name)?;
        }
        write(&self.root.join("drivers_probe"), &name)?;
        Ok(self.driver(address))
    }
}

fn is_ptdma(ids: &(String, String)) -> bool {
    ids.0 == VENDOR && ids.1 == DEVICE
}

/// The last part of where a link leads.
fn link_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|e| Error::about(path, "write", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A made-up sysfs: files take what is written to them, and nothing happens.
    struct Bus {
        folder: tempfile::TempDir,
    }

    impl Bus {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            for name in ["devices", "drivers", "groups", "vfio"] {
                fs::create_dir_all(folder.path().join(name)).expect("a folder");
            }
            fs::write(folder.path().join("drivers_probe"), "").expect("a file");
            Self { folder }
        }

        fn sysfs(&self) -> Sysfs {
            Sysfs {
                root: self.folder.path().to_owned(),
                groups: self.folder.path().join("vfio"),
            }
        }

        fn add(&self, name: &str, ids: (&str, &str), driver: Option<&str>, group: Option<u32>) {
            let root = self.folder.path();
            let function = root.join("devices").join(name);
            fs::create_dir_all(&function).expect("a folder");
            for (file, text) in [
                ("vendor", ids.0),
                ("device", ids.1),
                ("numa_node", "1"),
                ("driver_override", "(null)"),
            ] {
                fs::write(function.join(file), format!("{text}\n")).expect("a file");
            }
            if let Some(driver) = driver {
                let folder = root.join("drivers").join(driver);
                fs::create_dir_all(&folder).expect("a folder");
                symlink(&folder, function.join("driver")).expect("a link");
            }
            if let Some(group) = group {
                let folder = root.join("groups").join(group.to_string());
                fs::create_dir_all(folder.join("devices").join(name)).expect("a folder");
                symlink(&folder, function.join("iommu_group")).expect("a link");
            }
        }
    }

    const ENGINE: (&str, &str) = (VENDOR, DEVICE);

    #[test]
    fn only_engines_are_listed_in_order() -> Result<(), Error> {
        let bus = Bus::new();
        bus.add("0000:51:00.2", ENGINE, Some("ptdma"), Some(7));
        bus.add("0000:21:00.2", ENGINE, None, None);
        bus.add("0000:00:01.0", (VENDOR, "0x1480"), None, None);
        let found = bus.sysfs().list()?;
        let expected = [
            ("0000:21:00.2", None, None),
            ("0000:51:00.2", Some("ptdma"), Some(7)),
        ];
        assert_eq!(found.len(), expected.len());
        for (candidate, (address, driver, group)) in found.iter().zip(expected) {
            assert_eq!(candidate.address.to_string(), address);
            assert_eq!(candidate.driver.as_deref(), driver);
            assert_eq!(candidate.group, group);
            assert_eq!(candidate.node, Some(1));
        }
        Ok(())
    }

    #[test]
    fn a_function_that_cannot_be_taken_is_refused_before_anything_is_written() -> Result<(), Error>
    {
        let bus = Bus::new();
        bus.add("0000:00:01.0", (VENDOR, "0x1480"), None, Some(1));
        bus.add("0000:21:00.2", ENGINE, Some("ptdma"), None);
        let sysfs = bus.sysfs();
        let take = |text: &str| sysfs.take(text.parse().expect("an address"));
        assert!(matches!(
            take("0000:01:00.0"),
            Err(Error::NoSuchFunction(_))
        ));
        let error = take("0000:00:01.0").expect_err("no engine");
        assert!(error.to_string().contains("is 1022:1480"), "{error}");
        let error = take("0000:21:00.2").expect_err("no IOMMU");
        assert!(error.to_string().contains("amd_iommu=on"), "{error}");
        let file = bus
            .folder
            .path()
            .join("devices/0000:21:00.2/driver_override");
        assert_eq!(fs::read_to_string(file).ok().as_deref(), Some("(null)\n"));
        Ok(())
    }

    #[test]
    fn a_kernel_that_does_not_obey_is_told_and_the_wish_taken_back() {
        let bus = Bus::new();
        bus.add("0000:21:00.2", ENGINE, Some("ptdma"), Some(3));
        let address = "0000:21:00.2".parse().expect("an address");
        let error = bus.sysfs().take(address).expect_err("nobody binds");
        assert!(
            matches!(&error, Error::DriverRefused { driver: Some(driver), .. } if driver == "ptdma"),
            "{error}"
        );
        let root = bus.folder.path();
        let text = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
        assert_eq!(text("devices/0000:21:00.2/driver_override"), "\n");
        assert_eq!(text("drivers/ptdma/unbind"), "0000:21:00.2");
        assert_eq!(text("drivers_probe"), "0000:21:00.2");
    }

    #[test]
    fn what_vfio_has_is_left_and_the_others_of_its_group_are_named() -> Result<(), Error> {
        let bus = Bus::new();
        bus.add("0000:21:00.2", ENGINE, Some(VFIO_DRIVER), Some(3));
        bus.add("0000:21:00.3", (VENDOR, "0x1486"), Some("ccp"), Some(3));
        bus.add(
            "0000:20:01.1",
            (VENDOR, "0x1483"),
            Some("pcieport"),
            Some(3),
        );
        let address = "0000:21:00.2".parse()?;
        assert_eq!(bus.sysfs().take(address)?.as_deref(), Some(VFIO_DRIVER));
        let others = bus.sysfs().in_the_way(address);
        assert_eq!(others, [("0000:21:00.3".parse()?, "ccp".to_owned())]);
        Ok(())
    }
}
