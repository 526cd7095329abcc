//! The wish to stop, as a signal tells it: a measurement that goes on for minutes looks for it in each of its steps, so that
//! what it has started ends with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Whether the program is to stop. The default one watches for nothing, and never says so.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    told: Arc<AtomicBool>,
}

impl Interrupt {
    /// Watches for SIGINT and SIGTERM, which no longer end the program by themselves.
    ///
    /// # Errors
    /// When the kernel does not let them be watched for.
    pub fn watch() -> Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&told)).context("watch for an interrupt")?;
        }
        Ok(Self { told })
    }

    /// Whether one of them has come.
    #[must_use]
    pub fn came(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Fails when one of them has come.
    ///
    /// # Errors
    /// When one of them has come.
    pub fn check(&self) -> Result<()> {
        if self.came() { bail!("interrupted") } else { Ok(()) }
    }
}
