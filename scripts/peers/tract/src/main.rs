//! A network from an ONNX file, run by tract: `tract-peer MODEL.onnx INPUT.safetensors OUTPUT.safetensors`.
//!
//! INPUT holds `x`, [n, channels, height, width], of f32 or, for a network that prepares its input itself,
//! of u8; OUTPUT gets `logits`, f32 [n, classes]. The graph is made for the input's sizes, as its own
//! batch is open, and optimised.

use std::error::Error;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use tract_onnx::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, input, output] = &arguments[..] else {
        return Err("expected MODEL.onnx INPUT.safetensors OUTPUT.safetensors".into());
    };
    let bytes = std::fs::read(input).map_err(|error| format!("{input}: {error}"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let view = file.tensor("x")?;
    let kind = match view.dtype() {
        Dtype::F32 => DatumType::F32,
        Dtype::U8 => DatumType::U8,
        other => return Err(format!("{input}: expected `x` of F32 or U8, found {other:?}").into()),
    };
    let x = if kind == DatumType::F32 {
        let values =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Tensor::from_shape(view.shape(), &values.collect::<Vec<_>>())?
    } else {
        Tensor::from_shape(view.shape(), view.data())?
    };
    let network = tract_onnx::onnx()
        .model_for_path(model)?
        .with_input_fact(0, InferenceFact::dt_shape(kind, view.shape()))?
        .into_optimized()?
        .into_runnable()?;
    let results = network.run(tvec!(x.into_tvalue()))?;
    let logits = results[0].as_slice::<f32>()?;
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, results[0].shape().to_vec(), &bytes)?;
    serialize_to_file([("logits", view)], None, output.as_ref())?;
    Ok(())
}
