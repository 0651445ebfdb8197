//! Ctrl-C: the first press asks the command to save and stop, a second one ends it at once.

use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once a command is asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Interruption(Arc<AtomicBool>);

/// Exit code of a command that was interrupted: 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

impl Interruption {
    /// Listens from now on, also for SIGTERM and SIGHUP. A process listens once; where the system
    /// refuses, Ctrl-C ends the command as usual.
    pub fn listen() -> Interruption {
        let interruption = Interruption::default();
        let flag = interruption.0.clone();
        let _ = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_CODE.into());
            }
        });
        interruption
    }

    /// # Errors
    /// [`Error::Interrupted`] once the command is asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
