//! What the C library's allocator is told at the start. Chunks are read on one thread, verified on another and freed
//! there; left alone, glibc keeps what each of the many threads freed in an arena of its own, for good. Nothing else
//! about memory is decided here.

/// Makes glibc's threads share arenas and give large buffers back. To be called before the first thread starts; does
/// nothing where the C library is another one.
pub(crate) fn share_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Two threads can allocate at once; small blocks come from caches of each thread anyway.
        const ARENAS: i32 = 2;
        /// From this size on, in bytes, a block is its own mapping, which freeing it removes. Above the buffers of the
        /// data plane, whose pages would have to be faulted in for each use.
        const OWN_MAPPING: i32 = 1 << 20;
        /// An arena that ends in more free bytes than this is cut.
        const TRIM: i32 = 1 << 20;
        #[allow(unsafe_code, reason = "no safe wrapper exists")]
        // SAFETY: mallopt takes any two numbers and keeps them; no other thread runs yet.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
            libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
            libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM);
        }
    }
}
