//! Progress bars: on standard error, only where somebody looks.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::settings::Settings;

/// What takes less time than this has no bar, and so nothing flickers.
const TICK: Duration = Duration::from_millis(120);

/// The progress of one thing; it vanishes when this is dropped.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
}

/// Takes the bar away.
#[derive(Debug)]
pub struct Shown(Progress);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.bar.finish_and_clear();
    }
}

impl std::ops::Deref for Shown {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.0
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is ours").progress_chars("=> ")
}

fn shown(settings: &Settings, length: Option<u64>, template: &str, what: String) -> Shown {
    let hidden = settings.quiet || !settings.interactive;
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(length, target).with_style(style(template)).with_message(what);
    if !hidden {
        bar.enable_steady_tick(TICK);
    }
    Shown(Progress { bar })
}

impl Progress {
    /// Bytes on their way; without a length, their number only.
    pub fn bytes(settings: &Settings, what: impl Into<String>, length: Option<u64>) -> Shown {
        let template = match length {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {spinner} {bytes} {bytes_per_sec}",
        };
        shown(settings, length, template, what.into())
    }

    /// Things of which so many are to be done.
    pub fn items(settings: &Settings, what: impl Into<String>, length: u64) -> Shown {
        shown(settings, Some(length), "{msg} [{bar:30}] {pos}/{len}", what.into())
    }

    /// Something that takes so long; how far it is is set in milliseconds.
    pub fn time(settings: &Settings, what: impl Into<String>, length: Duration) -> Shown {
        let milliseconds = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        shown(settings, Some(milliseconds), "[{bar:30}] {elapsed} {msg}", what.into())
    }

    /// Something that takes as long as it takes.
    pub fn waiting(settings: &Settings, what: impl Into<String>) -> Shown {
        shown(settings, None, "{spinner} {msg} ({elapsed})", what.into())
    }

    /// Says what is going on.
    pub fn say(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
    }

    /// Sets how far it is.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Adds to how far it is.
    pub fn add(&self, delta: u64) {
        self.bar.inc(delta);
    }

    /// A function that sets how far it is, for those who report from elsewhere.
    #[must_use]
    pub fn setter(&self) -> Arc<dyn Fn(u64) + Send + Sync> {
        let bar = self.bar.clone();
        Arc::new(move |position| bar.set_position(position))
    }
}
