//! A network of hosts whose lines do what a test says: cut (also one way), lose, delay, double and reorder packets.
//!
//! Every host is a network namespace with one TUN device; a thread of the test carries the packets between them. The
//! namespaces have no names, so that networks of several tests never meet, and nothing of them is left behind.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{PipeWriter, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sim::random::Random;

/// The hosts' device.
const DEVICE: &str = "d3b0";
/// Longer than any packet that such a device gives.
const PACKET_MAX: usize = 2_000;
/// The host of the test itself.
pub const TEST: usize = 0;

/// What happens to packets from one host to another. The other way has its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Line {
    /// Nothing gets through.
    pub cut: bool,
    /// So many of a hundred are lost.
    pub loss: u64,
    /// So many of a hundred come twice.
    pub doubled: u64,
    /// So many of a hundred overtake those before them.
    pub overtaking: u64,
    /// They take so long, in milliseconds.
    pub delay: u64,
    /// And up to so much longer.
    pub jitter: u64,
}

/// A line that carries nothing.
pub const CUT: Line = Line { cut: true, loss: 0, doubled: 0, overtaking: 0, delay: 0, jitter: 0 };

/// A namespace and its address in the network.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where the others find it.
    pub address: Ipv4Addr,
    /// For `setns`.
    pub namespace: Arc<OwnedFd>,
}

impl Host {
    /// Moves the calling thread here, and with it every thread and process that it starts later.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> std::io::Result<()> {
        // SAFETY: the descriptor is open; the call changes which network the calling thread sees, and no memory.
        match unsafe { libc::setns(self.namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// The network. Host 0 is the test's, the others are for the replicas of the same number.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<Host>,
    lines: Arc<Lines>,
    /// Closing it ends the switch.
    stop: Option<PipeWriter>,
    switch: Option<JoinHandle<()>>,
}

/// The lines between all hosts.
#[derive(Debug)]
struct Lines {
    hosts: usize,
    lines: Mutex<Vec<Line>>,
}

impl Lines {
    fn of(&self, from: usize, to: usize) -> Line {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)[from * self.hosts + to]
    }
}

impl Network {
    /// A network for so many replicas, with lines that lose nothing. The calling thread becomes its host 0.
    ///
    /// # Panics
    /// When the machine refuses; [`super::needs::NETWORK`] says what it takes.
    #[must_use]
    pub fn new(replicas: usize, seed: u64) -> Network {
        let count = replicas + 1;
        let made: Vec<(Host, File)> = (0..count).map(make_host).collect();
        let (hosts, devices): (Vec<Host>, Vec<File>) = made.into_iter().unzip();
        let lines = Arc::new(Lines { hosts: count, lines: Mutex::new(vec![Line::default(); count * count]) });
        let (stopped, stop) = std::io::pipe().expect("a pipe");
        let shared = Arc::clone(&lines);
        let switch = std::thread::spawn(move || {
            let stopped = File::from(OwnedFd::from(stopped));
            Switch { devices, stopped, lines: shared, random: Random::new(seed), waiting: BinaryHeap::new(), count: 0 }
                .run();
        });
        hosts[TEST].enter().expect("a thread of root's may change its network");
        Network { hosts, lines, stop: Some(stop), switch: Some(switch) }
    }

    /// The replicas' hosts, in order of their ids.
    #[must_use]
    pub fn replicas(&self) -> Vec<Host> {
        self.hosts[TEST + 1..].to_vec()
    }

    /// Changes the line from one host to another; the way back stays as it is.
    pub fn set(&self, from: u32, to: u32, line: Line) {
        println!("line {from} -> {to}: {line:?}");
        let at = from as usize * self.hosts.len() + to as usize;
        self.lines.lines.lock().unwrap_or_else(PoisonError::into_inner)[at] = line;
    }

    /// Cuts what goes between two hosts, both ways.
    pub fn part(&self, one: u32, other: u32) {
        self.set(one, other, CUT);
        self.set(other, one, CUT);
    }

    /// Changes all lines between replicas; those of the test stay good.
    pub fn set_all(&self, line: Line) {
        println!("every line: {line:?}");
        let mut lines = self.lines.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = self.hosts.len();
        for (from, to) in (1..hosts).flat_map(|from| (1..hosts).map(move |to| (from, to))) {
            lines[from * hosts + to] = line;
        }
    }

    /// Makes all lines good.
    pub fn heal(&self) {
        self.set_all(Line::default());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(switch) = self.switch.take() {
            // Its panic, if any, was printed.
            let _ = switch.join();
        }
    }
}

/// Makes a namespace with its device.
fn make_host(number: usize) -> (Host, File) {
    let address = Ipv4Addr::new(10, 78, 0, u8::try_from(number + 1).expect("few hosts"));
    let make = move || -> std::io::Result<(Host, File)> {
        // SAFETY: it moves this thread, which ends right after, into a network of its own, and touches no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let device = open_device()?;
        let settings = [
            vec!["link", "set", "lo", "up"],
            vec!["addr", "add", "ADDRESS", "dev", DEVICE],
            vec!["link", "set", DEVICE, "up"],
        ];
        let address_and_net = format!("{address}/24");
        for mut setting in settings {
            setting.iter_mut().filter(|word| **word == "ADDRESS").for_each(|word| *word = &address_and_net);
            let status = Command::new("ip").args(&setting).status()?;
            assert!(status.success(), "ip {setting:?}: {status}");
        }
        let namespace = Arc::new(File::open("/proc/thread-self/ns/net")?.into());
        Ok((Host { address, namespace }, device))
    };
    let made = std::thread::spawn(make).join().expect("a network can be set up");
    made.unwrap_or_else(|error| panic!("no network namespace with a device: {error}"))
}

/// A TUN device of the calling thread's network.
fn open_device() -> std::io::Result<File> {
    let device = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeros is a request of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("small flags");
    // SAFETY: the request is whole, outlives the call, and its name ends with a zero.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(device),
    }
}

/// A packet on its way: when it is due, in which order it came, where it goes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

/// Carries packets.
struct Switch {
    devices: Vec<File>,
    stopped: File,
    lines: Arc<Lines>,
    random: Random,
    waiting: BinaryHeap<Reverse<Packet>>,
    count: u64,
}

impl Switch {
    fn run(mut self) {
        while !self.wait() {
            for from in 0..self.devices.len() {
                self.take_from(from);
            }
            self.deliver();
        }
    }

    /// Waits until there is something to do; true if that is to stop.
    fn wait(&self) -> bool {
        let descriptors = self.devices.iter().chain([&self.stopped]).map(File::as_raw_fd);
        let mut polled: Vec<libc::pollfd> =
            descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        let left = self.waiting.peek().map(|Reverse(next)| next.due.saturating_duration_since(Instant::now()));
        // Rounded up, so that it is not asked again and again for what is due within the same millisecond.
        let left = left.map_or(1_000, |left| i32::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(1_000));
        // SAFETY: the slice is as long as is said, and outlives the call.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, left) };
        polled.last().is_some_and(|stopped| stopped.revents != 0)
    }

    fn take_from(&mut self, from: usize) {
        let mut buffer = [0; PACKET_MAX];
        // So many at once that no host keeps the others waiting.
        for _ in 0..64 {
            let Ok(length) = (&self.devices[from]).read(&mut buffer) else { return };
            // IPv4 only; the last byte of the destination tells the host.
            if length < 20 || buffer[0] >> 4 != 4 || buffer[16..19] != [10, 78, 0] {
                continue;
            }
            let to = usize::from(buffer[19]).wrapping_sub(1);
            if to >= self.devices.len() || to == from {
                continue;
            }
            let line = self.lines.of(from, to);
            for _ in 0..1 + u64::from(self.random.percent(line.doubled)) {
                self.post(line, to, &buffer[..length]);
            }
        }
    }

    fn post(&mut self, line: Line, to: usize, bytes: &[u8]) {
        if line.cut || self.random.percent(line.loss) {
            return;
        }
        let mut delay = line.delay + self.random.below(line.jitter + 1);
        if self.random.percent(line.overtaking) {
            delay = 0;
        }
        self.count += 1;
        let due = Instant::now() + Duration::from_millis(delay);
        self.waiting.push(Reverse(Packet { due, number: self.count, to, bytes: bytes.to_vec() }));
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|Reverse(next)| next.due <= now) {
            let Some(Reverse(packet)) = self.waiting.pop() else { return };
            // A host that has no room for it loses it, as hosts do.
            let _ = (&self.devices[packet.to]).write(&packet.bytes);
        }
    }
}
