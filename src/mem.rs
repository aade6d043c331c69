//! Where things are: four regions, typed spans in them, and the bump allocator that hands the spans out.
//!
//! This module does arithmetic and owns no memory. A [`Buf`] is an offset, so a plan can be built, printed and costed
//! on a machine that has neither the weights nor the device; a backend turns offsets into addresses when it links.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::NoUninit;
use half::{bf16, f16};

/// Every buffer starts at a multiple of this many bytes: a whole number of cache lines on any device, and what TMA
/// descriptors and 16-byte vector loads ask for.
pub const ALIGN: u64 = 256;

/// Scalar types that a buffer may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 32-bit integer: ids, positions, slots, lengths.
    I32,
    /// Bytes: pixels and parameter records.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }

    /// The suffix of kernel symbols and the name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::U8 => "u8",
        }
    }

    /// Whether a model can compute in this type.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An element of the plan's float type, which is known at run time: f32, f16 or bf16. A marker, never a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {}

/// What a [`Buf`] may be typed by.
pub trait Element: 'static {
    /// The stored type, given the float type of the plan.
    fn dtype(plan: DType) -> DType;
}

macro_rules! element {
    ($($t:ty => $d:expr),* $(,)?) => { $(impl Element for $t { fn dtype(_: DType) -> DType { $d } })* };
}
element!(f32 => DType::F32, f16 => DType::F16, bf16 => DType::Bf16, i32 => DType::I32, u8 => DType::U8);

impl Element for Act {
    fn dtype(plan: DType) -> DType {
        plan
    }
}

/// The four allocations of a process, each made once at start-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// Parameters and constant tables; written at load, read-only afterwards.
    Weights,
    /// The paged key/value cache.
    Kv,
    /// Activations; nothing in it outlives a plan, except what a layout reserves below the plans.
    Scratch,
    /// What the host and the device exchange at every step: ids, positions, block tables, sampled tokens.
    Io,
}

impl Region {
    /// All regions, in the order of their index.
    pub const ALL: [Region; 4] = [Region::Weights, Region::Kv, Region::Scratch, Region::Io];

    /// Lower-case name, as printed by `ocelli plan`.
    pub const fn name(self) -> &'static str {
        match self {
            Region::Weights => "weights",
            Region::Kv => "kv",
            Region::Scratch => "scratch",
            Region::Io => "io",
        }
    }
}

/// A typed run of elements in a region. It has no shape, stride or name: those belong to the op that reads it.
pub struct Buf<T> {
    region: Region,
    dtype: DType,
    byte: u64,
    len: u64,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Buf<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Buf<T> {}

impl<T> fmt::Debug for Buf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.span())
    }
}

impl<T> Buf<T> {
    /// Where it lies.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Stored type of an element.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part `range`, in elements.
    ///
    /// # Panics
    /// If the range leaves the buffer: plans are built by code, never by input.
    pub fn slice(&self, range: Range<usize>) -> Buf<T> {
        assert!(
            range.start <= range.end && range.end as u64 <= self.len,
            "slice {range:?} of a buffer of {} elements",
            self.len
        );
        Buf {
            byte: self.byte + (range.start * self.dtype.size()) as u64,
            len: (range.end - range.start) as u64,
            ..*self
        }
    }

    /// The same place as bytes: what a host has that knows an element's type at run time only.
    pub fn bytes(&self) -> Buf<u8> {
        let span = self.span();
        Buf::from_span(Span { dtype: DType::U8, len: span.bytes(), ..span })
    }

    /// The buffer at `span`.
    pub(crate) fn from_span(span: Span) -> Buf<T> {
        Buf { region: span.region, dtype: span.dtype, byte: span.byte, len: span.len, element: PhantomData }
    }

    /// The same place without its type, for comparing and tracing.
    pub fn span(&self) -> Span {
        Span { region: self.region, dtype: self.dtype, byte: self.byte, len: self.len }
    }
}

/// A [`Buf`] whose element type is known at run time only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Where it lies.
    pub region: Region,
    /// Stored type of an element.
    pub dtype: DType,
    /// Offset from the start of the region, in bytes.
    pub byte: u64,
    /// Number of elements.
    pub len: u64,
}

impl Span {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.len * self.dtype.size() as u64
    }

    /// Byte range in the region.
    pub fn range(&self) -> Range<usize> {
        self.byte as usize..(self.byte + self.bytes()) as usize
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}..+{} {}]", self.region.name(), self.byte, self.len, self.dtype)
    }
}

impl From<Buf<f32>> for Buf<Act> {
    /// f32 is one of the types that [`Act`] stands for: a GEMM writes logits so.
    fn from(b: Buf<f32>) -> Buf<Act> {
        Buf::from_span(b.span())
    }
}

/// The spans that an op writes.
pub type Spans = Vec<Span>;

/// Hands out the buffers of one region, front to back.
#[derive(Clone, Debug)]
pub struct Layout {
    region: Region,
    plan_dtype: DType,
    next: u64,
}

impl Layout {
    /// An empty layout of `region`; [`Act`] elements will be stored as `plan_dtype`.
    pub fn new(region: Region, plan_dtype: DType) -> Layout {
        Layout { region, plan_dtype, next: 0 }
    }

    /// The next `len` elements, aligned to [`ALIGN`].
    pub fn take<T: Element>(&mut self, len: usize) -> Buf<T> {
        let dtype = T::dtype(self.plan_dtype);
        let byte = self.next.next_multiple_of(ALIGN);
        self.next = byte + (len * dtype.size()) as u64;
        Buf { region: self.region, dtype, byte, len: len as u64, element: PhantomData }
    }

    /// Bytes that the region needs, rounded up to [`ALIGN`]. Plans that share bytes each continue a clone; the region
    /// then needs the most that any of them asks for.
    pub fn bytes(&self) -> usize {
        self.next.next_multiple_of(ALIGN) as usize
    }

    /// Everything that was taken since [`Layout::bytes`] was `start`, in one piece.
    pub fn since(&self, start: usize) -> Buf<u8> {
        Buf {
            region: self.region,
            dtype: DType::U8,
            byte: start as u64,
            len: self.next.saturating_sub(start as u64),
            element: PhantomData,
        }
    }

    /// The float type that [`Act`] stands for here.
    pub fn dtype(&self) -> DType {
        self.plan_dtype
    }
}

/// Start addresses of the four regions: what linking adds to a plan.
#[derive(Clone, Copy, Debug)]
pub struct Bases([u64; 4]);

impl Bases {
    /// From the addresses of [`Region::ALL`], in that order.
    pub fn new(addresses: [u64; 4]) -> Bases {
        Bases(addresses)
    }

    /// Address of the first element.
    pub fn at<T>(&self, b: Buf<T>) -> u64 {
        self.0[b.region as usize] + b.byte
    }
}

/// The bytes of one tensor before they are in a region, shared with whoever else reads them: part of a memory-mapped
/// file, or a vector. Cloning shares; a backend on the host may keep the bytes where they are.
#[derive(Clone)]
pub struct Source {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    dtype: DType,
    file: Option<Arc<File>>,
}

impl Source {
    /// The bytes `range` of `owner` as little-endian elements of `dtype`; `None` when the range leaves the owner or
    /// holds a broken element. `owner` must hand out the same bytes every time.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>, dtype: DType) -> Option<Source> {
        let bytes = (*owner).as_ref().get(range.clone())?;
        (bytes.len() % dtype.size() == 0).then_some(Source { owner, range, dtype, file: None })
    }

    /// The same bytes, of which the owner is a map of `file` from its start: [`Source::read`] then reads the file.
    pub fn in_file(self, file: Arc<File>) -> Source {
        Source { file: Some(file), ..self }
    }

    /// Takes over `values`, which must be little-endian, as they are on every supported host.
    pub fn from_vec<T: Element + NoUninit + Send + Sync>(values: Vec<T>) -> Source {
        let range = 0..size_of_val(values.as_slice());
        Source { owner: Arc::new(Values(values)), range, dtype: T::dtype(DType::F32), file: None }
    }

    /// The elements' bytes. Of any alignment: a file places a tensor wherever its writer liked.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// Copy the bytes of the elements from `first` on to `out`, which must be as long as what is wanted.
    ///
    /// # Errors
    /// The file cannot be read, or became shorter.
    pub fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        let start = first * self.dtype.size();
        assert!(start + out.len() <= self.range.len(), "{} bytes from element {first} of {self:?}", out.len());
        #[cfg(unix)]
        if let Some(file) = &self.file {
            use std::os::unix::fs::FileExt;
            return file.read_exact_at(out, (self.range.start + start) as u64);
        }
        out.copy_from_slice(&self.bytes()[start..start + out.len()]);
        Ok(())
    }

    /// The elements `range`, which share the bytes.
    ///
    /// # Panics
    /// If the range leaves the source.
    pub fn slice(&self, range: Range<usize>) -> Source {
        assert!(range.start <= range.end && range.end <= self.len(), "elements {range:?} of {self:?}");
        let at = |element: usize| self.range.start + element * self.dtype.size();
        Source { range: at(range.start)..at(range.end), ..self.clone() }
    }

    /// Type of an element.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.range.len() / self.dtype.size()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({} x {})", self.len(), self.dtype)
    }
}

/// Lets a vector of numbers own the bytes of a [`Source`].
struct Values<T>(Vec<T>);

impl<T: NoUninit> AsRef<[u8]> for Values<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_do_not_overlap() {
        let mut l = Layout::new(Region::Scratch, DType::Bf16);
        let a = l.take::<Act>(3);
        let b = l.take::<f32>(5);
        assert_eq!((a.span().byte, a.span().bytes(), a.dtype()), (0, 6, DType::Bf16));
        assert_eq!((b.span().byte, b.span().bytes(), b.dtype()), (256, 20, DType::F32));
        assert_eq!(l.bytes(), 512);
    }

    #[test]
    fn clones_share_the_bytes_that_follow() {
        let mut l = Layout::new(Region::Scratch, DType::F32);
        l.take::<f32>(1);
        let (mut a, mut b) = (l.clone(), l);
        assert_eq!(a.take::<f32>(1000).span().byte, b.take::<f32>(10).span().byte);
        assert_eq!((a.bytes(), b.bytes()), (256 + 4096, 512));
    }

    #[test]
    fn what_was_taken_since_a_mark_is_one_buffer() {
        let mut l = Layout::new(Region::Io, DType::F32);
        l.take::<u8>(3);
        let start = l.bytes();
        let (a, b) = (l.take::<i32>(5), l.take::<f32>(2));
        let both = l.since(start).span();
        assert_eq!(both.byte, a.span().byte);
        assert_eq!(both.byte + both.bytes(), b.span().byte + b.span().bytes());
    }

    #[test]
    fn slices_move_by_elements_and_bases_add_up() {
        let mut l = Layout::new(Region::Kv, DType::F16);
        l.take::<u8>(1);
        let b = l.take::<Act>(100).slice(10..20);
        assert_eq!((b.span().byte, b.len()), (256 + 20, 10));
        assert_eq!((b.bytes().span().byte, b.bytes().len()), (256 + 20, 20));
        assert_eq!(Bases::new([1, 1000, 3, 4]).at(b), 1276);
    }

    #[test]
    #[should_panic(expected = "slice 5..11 of a buffer of 10 elements")]
    fn a_slice_cannot_leave_its_buffer() {
        Layout::new(Region::Io, DType::F32).take::<i32>(10).slice(5..11);
    }

    #[test]
    fn a_source_stays_inside_its_owner_and_holds_whole_elements() {
        let owner = || Arc::new(vec![0u8, 0, 128, 63, 9]);
        let one = Source::new(owner(), 0..4, DType::F32).unwrap();
        assert_eq!((one.bytes(), one.len(), one.dtype()), (&[0, 0, 128, 63][..], 1, DType::F32));
        assert_eq!(Source::new(owner(), 1..5, DType::F16).unwrap().len(), 2);
        assert!(Source::new(owner(), 0..5, DType::F16).is_none());
        assert!(Source::new(owner(), 4..6, DType::F16).is_none());
    }

    #[test]
    fn a_source_is_read_from_its_file_where_it_has_one() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[1, 2, 3, 4, 5, 6]).unwrap();
        // The owner has other bytes, so that it shows which were read.
        let source = Source::new(Arc::new(vec![0u8; 6]), 2..6, DType::F16).unwrap();
        let mut out = [9; 2];
        source.read(1, &mut out).unwrap();
        assert_eq!(out, [0, 0]);
        let file = Arc::new(file);
        let source = source.in_file(file.clone());
        source.read(1, &mut out).unwrap();
        assert_eq!(out, [5, 6]);
        file.set_len(5).unwrap();
        assert_eq!(source.read(1, &mut out).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_source_of_a_vector_shares_its_bytes() {
        let ones = Source::from_vec(vec![f16::ONE; 3]);
        assert_eq!((ones.bytes(), ones.dtype()), (&[0, 60, 0, 60, 0, 60][..], DType::F16));
        assert_eq!(ones.clone().bytes().as_ptr(), ones.bytes().as_ptr());
        assert!(Source::from_vec(Vec::<f32>::new()).is_empty());
        let tail = Source::from_vec(vec![1i32, 2, 3]).slice(1..3);
        assert_eq!((tail.bytes(), tail.slice(1..2).bytes()), (&[2, 0, 0, 0, 3, 0, 0, 0][..], &[3, 0, 0, 0][..]));
    }
}
