//! The types that a batch is run with, under one name.

use ptdma::shared::SharedChannel;
use ptdma::{CopyChannel, Lock};

use crate::host::{CpuCopier, Rescue};
use crate::map::Mapper;
use crate::source::FolioSource;
use crate::wait::Wait;

/// What the caller of a batch chooses. Tuples of the seven types are such names.
pub(super) trait Kinds {
    /// The list of folios.
    type Source: FolioSource + ?Sized;
    /// The engines' channels.
    type Channel: CopyChannel;
    /// What guards each channel.
    type Lock: Lock<SharedChannel<Self::Channel>>;
    /// Clock and wait.
    type Wait: Wait;
    /// Translation to bus addresses.
    type Mapper: Mapper;
    /// Copies by the CPU.
    type Cpu: CpuCopier;
    /// The last resort.
    type Rescue: Rescue;
}

impl<S, C, L, W, M, K, R> Kinds for (&S, C, L, W, M, K, R)
where
    S: FolioSource + ?Sized,
    C: CopyChannel,
    L: Lock<SharedChannel<C>>,
    W: Wait,
    M: Mapper,
    K: CpuCopier,
    R: Rescue,
{
    type Source = S;
    type Channel = C;
    type Lock = L;
    type Wait = W;
    type Mapper = M;
    type Cpu = K;
    type Rescue = R;
}
