//! What can go wrong with an index, by what is to be done about it.

use rusqlite::ErrorCode;

/// Why the index did not do what was asked. The mail is not concerned.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is damaged, of another version, or of another journal: throw it away and begin a new one.
    #[error("the index is of no use: {0}")]
    Unusable(String),
    /// The disk, its room or its permissions: what was asked for did not happen, and may work later.
    #[error("the index cannot be used now: {0}")]
    Unavailable(String),
}

impl From<rusqlite::Error> for IndexError {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error_code();
        match code {
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
                | ErrorCode::OutOfMemory
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted
                | ErrorCode::NoLargeFileSupport,
            ) => Self::Unavailable(error.to_string()),
            // Corrupt, no database, tables that are not ours, values of another type: not what we wrote.
            _ => Self::Unusable(error.to_string()),
        }
    }
}
