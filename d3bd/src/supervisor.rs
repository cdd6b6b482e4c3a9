//! What the process tells its supervisor (systemd, or nobody), and what signals tell the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use d3b_paxos::types::Ticks;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::driver::{DriverStatus, Phase};
use crate::run::Stop;

/// How often the driver pings the watchdog at most.
const PING_INTERVAL: Ticks = Ticks(1_000);

/// The driver's last ping.
static PINGED_AT: AtomicU64 = AtomicU64::new(0);

fn notify(states: &[NotifyState<'_>]) {
    // Without a supervisor there is nobody to tell, and that is well.
    drop(sd_notify::notify(states));
}

/// Recovered and listening.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// On the way out.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping: handing over and draining")]);
}

/// The driver is alive: it calls this in every turn, and a hung driver does not.
pub(crate) fn alive(now: Ticks) {
    if now.0 >= PINGED_AT.load(Ordering::Relaxed) + PING_INTERVAL.0 {
        PINGED_AT.store(now.0, Ordering::Relaxed);
        notify(&[NotifyState::Watchdog]);
    }
}

/// The signals that a replica takes notice of.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From here on they do not end the process by themselves.
    pub(crate) fn catch() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to stop, or for the replica's own word that it must.
    pub(crate) async fn wait_for_stop(mut self, stop: &Arc<Stop>, status: &watch::Receiver<Arc<DriverStatus>>) {
        let mut look = tokio::time::interval(Duration::from_millis(100));
        let mut told = String::new();
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => reload(),
                _ = look.tick() => {
                    if stop.asked() {
                        return;
                    }
                    let sentence = sentence(&status.borrow());
                    if sentence != told {
                        notify(&[NotifyState::Status(&sentence)]);
                        told = sentence;
                    }
                }
            }
        }
    }
}

/// SIGHUP: there is nothing yet that is read again, but the protocol of `Type=notify-reload` wants its answer.
fn reload() {
    tracing::info!("SIGHUP: no setting can be reloaded in this version; restart to change them");
    if let Ok(time) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, time]);
    }
    notify(&[NotifyState::Ready]);
}

/// The replica's state in a sentence, for `systemctl status`.
fn sentence(status: &DriverStatus) -> String {
    let state = state(status);
    match &status.catch_up {
        Some(catch_up) => format!("{state}; {}", catch_up.told()),
        None => state,
    }
}

fn state(status: &DriverStatus) -> String {
    match &status.phase {
        Phase::Forming { missing } => {
            let ids: Vec<_> = missing.iter().map(ToString::to_string).collect();
            format!("forming the cluster: waiting for replica {}", ids.join(", "))
        }
        Phase::Follower => match status.leader {
            Some(leader) => format!("follows replica {leader}"),
            None => "has no leader".to_owned(),
        },
        Phase::Candidate => "campaigns".to_owned(),
        Phase::Leader => "leads".to_owned(),
        Phase::Outcast { reason } => format!("takes no part: {reason}"),
        Phase::Quarantined { reason } => format!("is quarantined: {reason}"),
    }
}
