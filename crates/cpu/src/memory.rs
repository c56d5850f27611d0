//! Where tensors lie: zeroed values at addresses that vectors and pages like.
//!
//! A tensor is read and written from one end to the other many times a second. So it begins at a
//! cache line, no vector straddles two of them, and a large one lies on huge pages, whose addresses
//! a core has in its table when it needs them. Every page is written when the storage is made:
//! afterwards no step waits for the system to find one.

use std::alloc::{Layout, alloc, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rayon::prelude::*;

use crate::values::Element;

/// Bytes of a huge page, and the size from which storage lies on them.
const HUGE: usize = 2 << 20;
/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

/// A fixed number of values, zero at first.
pub struct Storage<T: Element> {
    pointer: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its values as a `Vec<T>` does, and lends them only as `&self` and `&mut self`.
unsafe impl<T: Element> Send for Storage<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for Storage<T> {}

impl<T: Element> Storage<T> {
    /// `len` zeros, written by the threads of the pool that this is called in; `None` where there is
    /// not enough memory for them.
    pub fn zeros(len: usize) -> Option<Storage<T>> {
        if len == 0 {
            return Some(Storage { pointer: NonNull::dangling(), len });
        }
        let layout = layout::<T>(len)?;
        // SAFETY: the layout is not of size zero.
        let pointer = NonNull::new(unsafe { alloc(layout) }.cast::<T>())?;
        #[cfg(target_os = "linux")]
        if layout.align() == HUGE {
            // A wish: where it is not granted, pages are small. SAFETY: these bytes are ours, and
            // the advice changes nothing of what they hold.
            unsafe {
                libc::madvise(pointer.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE);
            }
        }
        // SAFETY: the allocation has `len` values, and any bytes may be made zero.
        let values = unsafe {
            std::slice::from_raw_parts_mut(pointer.as_ptr().cast::<std::mem::MaybeUninit<T>>(), len)
        };
        values.par_chunks_mut(HUGE / size_of::<T>()).for_each(|values| {
            values.fill(std::mem::MaybeUninit::new(T::zeroed()));
        });
        Some(Storage { pointer, len })
    }
}

/// How storage of `len` values is aligned; `None` for more than there can be.
fn layout<T: Element>(len: usize) -> Option<Layout> {
    let bytes = len.checked_mul(size_of::<T>())?;
    Layout::from_size_align(bytes, if bytes >= HUGE { HUGE } else { LINE }).ok()
}

impl<T: Element> Drop for Storage<T> {
    fn drop(&mut self) {
        if let (1.., Some(layout)) = (self.len, layout::<T>(self.len)) {
            // SAFETY: allocated with this layout by `zeros`.
            unsafe { dealloc(self.pointer.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Element> Deref for Storage<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values, all written, that nobody else changes while they are borrowed.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for Storage<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and nobody else reads them.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_zero_aligned_and_its_own() {
        for len in [0, 1, 17, HUGE / 4 - 1, HUGE / 4, HUGE / 2 + 5] {
            let mut one = Storage::<f32>::zeros(len).unwrap();
            let other = Storage::<f32>::zeros(len).unwrap();
            assert_eq!(one.len(), len);
            let align = if len >= HUGE / 4 { HUGE } else { LINE };
            assert!(len == 0 || one.as_ptr().addr().is_multiple_of(align), "{len} values");
            assert!(one.iter().all(|value| value.to_bits() == 0));
            one.fill(1.0);
            assert!(other.iter().all(|value| *value == 0.0));
        }
    }

    #[test]
    fn what_cannot_be_had_is_no_storage() {
        assert!(Storage::<f32>::zeros(usize::MAX).is_none());
        assert!(Storage::<f32>::zeros(usize::MAX / 8).is_none());
        assert!(Storage::<f32>::zeros(usize::MAX / 64).is_none());
    }
}
