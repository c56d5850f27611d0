//! Windows of convolutions and pools, and their pads.

use zfnet_core::shape::{Rounding, windows};

use super::proto::NodeProto;
use super::tensor::list;
use crate::weights::brief;

/// Most rows or columns of images, and most of a window, a step or a pad.
pub const MAX_SIZE: usize = 1 << 16;

/// What a node says of its windows.
pub struct Window {
    /// Rows and columns.
    pub kernel: [usize; 2],
    /// Steps.
    pub stride: [usize; 2],
}

impl Window {
    /// Those of filters of some size, or of a size that the node must say.
    pub fn of(node: &NodeProto, filters: Option<[usize; 2]>) -> Result<Self, String> {
        let pair = |name: &str| -> Result<Option<[usize; 2]>, String> {
            let Some(numbers) = node.ints(name).filter(|numbers| !numbers.is_empty()) else {
                return Ok(None);
            };
            let sizes: Option<Vec<usize>> =
                numbers.iter().map(|&number| usize::try_from(number).ok()).collect();
            match sizes.as_deref() {
                Some(&[rows, columns])
                    if [rows, columns].iter().all(|size| (1..MAX_SIZE).contains(size)) =>
                {
                    Ok(Some([rows, columns]))
                }
                _ => Err(format!(
                    "expected {name} of two positive numbers, rows and columns, found {}",
                    list(numbers)
                )),
            }
        };
        let said = pair("kernel_shape")?;
        let kernel = filters.or(said).ok_or("expected a kernel_shape")?;
        if said.is_some_and(|said| said != kernel)
            || kernel.iter().any(|size| !(1..MAX_SIZE).contains(size))
        {
            return Err(format!("expected filters of its kernel_shape, found {}", list(&kernel)));
        }
        if let Some(dilations) = pair("dilations")?.filter(|&dilations| dilations != [1, 1]) {
            return Err(format!(
                "expected windows without gaps (dilations 1), found {}",
                list(&dilations)
            ));
        }
        Ok(Window { kernel, stride: pair("strides")?.unwrap_or([1, 1]) })
    }

    /// Top, bottom, left, right; `added` are those of nodes before it.
    pub fn pads(
        &self,
        node: &NodeProto,
        size: [Option<usize>; 2],
        added: [usize; 4],
    ) -> Result<[usize; 4], String> {
        let auto = node.text("auto_pad").unwrap_or_default();
        let mut pad = match &*auto {
            "" | "NOTSET" => match node.ints("pads").unwrap_or_default() {
                [] => [0; 4],
                pads @ &[top, left, bottom, right] => {
                    let sides = [top, bottom, left, right]
                        .map(|side| usize::try_from(side).unwrap_or(MAX_SIZE));
                    if sides.iter().any(|&side| side >= MAX_SIZE) {
                        return Err(format!(
                            "expected pads that are not negative, found {}",
                            list(pads)
                        ));
                    }
                    sides
                }
                pads => return Err(format!("expected four pads, found {}", list(pads))),
            },
            "VALID" => [0; 4],
            "SAME_UPPER" | "SAME_LOWER" => {
                let mut pad = [0; 4];
                for axis in 0..2 {
                    let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
                    let size = size[axis].map(|size| size + added[2 * axis] + added[2 * axis + 1]);
                    let total = match size {
                        // Where each value has a window, the size does not matter.
                        _ if stride == 1 => kernel - 1,
                        Some(size) => {
                            ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size)
                        }
                        None => {
                            return Err(format!(
                                "expected a fixed size of images, on which pads of {auto} depend: export it with one"
                            ));
                        }
                    };
                    let (less, more) = (total / 2, total - total / 2);
                    let (before, after) =
                        if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
                    (pad[2 * axis], pad[2 * axis + 1]) = (before, after);
                }
                pad
            }
            _ => return Err(format!("expected a known auto_pad, found `{}`", brief(&auto))),
        };
        (0..4).for_each(|side| pad[side] += added[side]);
        match pad.iter().all(|&side| side < MAX_SIZE) {
            true => Ok(pad),
            false => Err(format!("expected pads of less than {MAX_SIZE}, found {}", list(&pad))),
        }
    }

    /// Rows and columns of windows, as far as sizes are known.
    pub fn outputs(
        &self,
        size: [Option<usize>; 2],
        pad: [usize; 4],
        ceil: bool,
    ) -> Result<[Option<usize>; 2], String> {
        let rounding = if ceil { Rounding::Ceil } else { Rounding::Floor };
        let mut after = [None; 2];
        for axis in 0..2 {
            let Some(size) = size[axis] else { continue };
            let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
            let count = windows(size, kernel, stride, pad[2 * axis], pad[2 * axis + 1], rounding);
            after[axis] = Some(count.ok_or_else(|| {
                format!("expected an input that holds a window of {kernel}, found one of {size} with its pads")
            })?);
        }
        Ok(after)
    }
}
