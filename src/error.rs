//! The four kinds of error that leave the crate. Inside, everything is `anyhow` with context.

use std::fmt;

/// `Result` with the crate's public [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, sorted by who can mend it. The message inside names the thing, the value, the limit and the remedy.
#[derive(Debug)]
pub enum Error {
    /// The request is at fault: a broken picture, an impossible sampling parameter, a prompt that is too long.
    Request(anyhow::Error),
    /// The request is fine, but there is no room for it in what was allocated at start-up.
    Capacity(anyhow::Error),
    /// The checkpoint is at fault: a missing tensor, a contradictory config.json, a broken tokenizer.
    Model(anyhow::Error),
    /// The device is at fault: no driver, out of memory, a failed launch.
    Device(anyhow::Error),
}

impl Error {
    /// The `anyhow` chain inside.
    pub fn inner(&self) -> &anyhow::Error {
        match self {
            Error::Request(e) | Error::Capacity(e) | Error::Model(e) | Error::Device(e) => e,
        }
    }

    /// Whether every later request of the same engine would fail, too: its device is lost, or its thread has ended.
    pub fn is_final(&self) -> bool {
        self.device_lost().is_some() || self.inner().is::<EngineEnded>()
    }

    /// Set if the device will answer nothing more in this process.
    pub fn device_lost(&self) -> Option<&DeviceLost> {
        self.inner().downcast_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.inner())
    }
}

/// The message holds the whole chain already, so there is no source to print once more.
impl std::error::Error for Error {}

/// The engine's thread is not there any more. Found in the chain of an [`Error::Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineEnded;

impl fmt::Display for EngineEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the engine has ended; what it could not finish must be asked of another one")
    }
}

impl std::error::Error for EngineEnded {}

/// The device failed in a way that it does not recover from in this process: a kernel left its memory, the hardware
/// reported an error, a watchdog ended a launch. Found in the chain of an [`Error::Device`].
///
/// Whoever sees it must end the process, or answer without the device: every later call on that device returns this
/// again, without asking the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceLost {
    /// The device, for example `cuda:0`.
    pub device: String,
    /// What the driver said when it happened.
    pub cause: String,
}

impl fmt::Display for DeviceLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceLost { device, cause } = self;
        write!(f, "{device} is lost to this process: {cause}; start it again")
    }
}

impl std::error::Error for DeviceLost {}
