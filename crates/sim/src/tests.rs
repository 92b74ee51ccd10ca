//! The histories that every build plays, and the defects that each rule must notice.
use super::*;
