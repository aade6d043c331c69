//! Pictures on their way through a model, each stage by itself.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::super::pictures::{Bytes, pixels};
use crate::backend::Any;
use crate::config::ProcessorKwargs;
use crate::engine::Runner;
use crate::image::Rgb;
use crate::models::{Content, Picture, Processor, Tiles, Vlm};
use crate::plan::{Backend, Plan};

/// A model in memory, and what makes pictures ready for it.
pub(super) struct Bed {
    runner: Runner<Any>,
    how: Box<dyn Processor>,
    /// Tiles that are encoded together.
    max_tiles: usize,
}

/// What some pictures took together, in milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Times {
    /// From the bytes of their files to the rows that prompts refer to, as one request does it.
    pub all: f64,
    /// From those bytes to pixels where the tower reads them.
    pub patches: f64,
    /// The files decoded.
    pub decode: f64,
    /// Resized, cropped and cut into tiles on the host.
    pub resize: f64,
    /// Brought to where the tower, or the device's own resizing, reads them.
    pub upload: f64,
    /// Resized on the device, where it does that.
    pub device_resize: Option<f64>,
    /// Vision tower and projector.
    pub encode: f64,
    /// What was brought to the device.
    pub bytes: usize,
    /// Operations of tower and projector.
    pub flops: u64,
}

impl Bed {
    /// For a model that encodes up to `max_tiles` tiles together.
    ///
    /// # Errors
    /// If the model takes no pictures.
    pub fn new(runner: Runner<Any>, max_tiles: usize) -> Result<Bed> {
        ensure!(max_tiles > 0, "there is no room for pictures (--limit-mm-per-prompt image=0)");
        let how = runner.model().processor(&ProcessorKwargs::new())?;
        Ok(Bed { runner, how, max_tiles })
    }

    /// Places that a picture takes in a prompt.
    ///
    /// # Errors
    /// If it is no picture, or the model takes none.
    pub fn tokens(&self, picture: &[u8]) -> Result<usize> {
        Ok(self.how.prepare(&pixels(picture)?)?.tokens())
    }

    /// Everything once.
    ///
    /// # Errors
    /// If the pictures are none, or the backend fails.
    pub fn measure(&mut self, pictures: &[Bytes]) -> Result<Times> {
        let (all, ()) = timed(|| self.encode_from_bytes(pictures))?;
        let (patches, ()) = timed(|| self.stage_from_bytes(pictures))?;
        let (decode, decoded) = timed(|| decode(pictures))?;
        let (resize, _) = timed(|| decoded.iter().map(|rgb| self.how.prepare(rgb)).collect::<Result<Vec<_>>>())?;
        let tiles = decoded.into_iter().map(|rgb| self.prepare(rgb)).collect::<Result<Vec<_>>>()?;
        let (upload, bytes) = timed(|| {
            let bytes = tiles.iter().map(|tiles| self.upload(tiles)).sum::<Result<usize>>()?;
            self.wait().map(|()| bytes)
        })?;
        let device_resize = self.device_resize(&tiles)?;
        let (encode, flops) = self.encode(&tiles)?;
        Ok(Times { all, patches, decode, resize, upload, device_resize, encode, bytes, flops })
    }

    /// As the thread that asks and the engine do it together.
    fn encode_from_bytes(&mut self, pictures: &[Bytes]) -> Result<()> {
        let tiles = decode(pictures)?.into_iter().map(|rgb| self.prepare(rgb)).collect::<Result<Vec<_>>>()?;
        for together in self.together(&tiles)? {
            self.runner.encode(together)?;
        }
        self.wait()
    }

    /// The same up to where the tower begins.
    fn stage_from_bytes(&self, pictures: &[Bytes]) -> Result<()> {
        for rgb in decode(pictures)? {
            let tiles = self.prepare(rgb)?;
            self.upload(&tiles)?;
            if let Content::Picture(picture) = &tiles.content {
                self.run(&resize_plan(picture))?;
            }
        }
        self.wait()
    }

    /// A picture as the engine takes it: a GPU resizes it, where it can.
    fn prepare(&self, rgb: Rgb) -> Result<Tiles> {
        if self.runner.backend().runs_kernels() { self.how.prepare_for_device(rgb) } else { self.how.prepare(&rgb) }
    }

    /// Pictures that are encoded together, as many as fit.
    fn together<'a>(&self, tiles: &'a [Tiles]) -> Result<Vec<&'a [Tiles]>> {
        let (mut parts, mut first, mut sum) = (Vec::new(), 0, 0);
        for (i, picture) in tiles.iter().enumerate() {
            let (tiles_of_one, most) = (picture.tiles, self.max_tiles);
            ensure!(tiles_of_one <= most, "a picture has {tiles_of_one} tiles; {most} are encoded together at most");
            if sum + picture.tiles > self.max_tiles {
                parts.push(&tiles[first..i]);
                (first, sum) = (i, 0);
            }
            sum += picture.tiles;
        }
        parts.push(&tiles[first..]);
        Ok(parts)
    }

    /// Write what there is of a picture to where the first one goes. Returns its bytes.
    fn upload(&self, tiles: &Tiles) -> Result<usize> {
        let (backend, areas) = (self.runner.backend(), self.runner.model().areas());
        let (to, values) = (areas.tiles.pixels, areas.tiles.values);
        match &tiles.content {
            Content::Pixels(pixels) => backend.write(to, pixels).map(|()| pixels.len()),
            Content::Views { overview, pixels } => {
                backend.write(values, overview)?;
                backend.write(to, pixels)?;
                Ok(size_of_val(overview.as_slice()) + pixels.len())
            }
            Content::Picture(picture) => {
                backend.write(picture.resize.x, picture.rgb.data())?;
                backend.write(areas.picture.tables, &picture.tables)?;
                Ok(picture.rgb.data().len() + size_of_val(picture.tables.as_slice()))
            }
            Content::Features(_) | Content::Embeddings(_) => Ok(0),
        }
    }

    /// Milliseconds that the device takes to make the tiles; `None` if the host has made them.
    fn device_resize(&self, tiles: &[Tiles]) -> Result<Option<f64>> {
        let plan = |tiles: &Tiles| match &tiles.content {
            Content::Picture(picture) => Some(resize_plan(picture)),
            _ => None,
        };
        let plans: Vec<Plan> = tiles.iter().filter_map(plan).collect();
        if plans.is_empty() {
            return Ok(None);
        }
        let (time, ()) = timed(|| {
            plans.iter().try_for_each(|plan| self.run(plan))?;
            self.wait()
        })?;
        Ok(Some(time))
    }

    /// Milliseconds and operations of the tower and the projector.
    fn encode(&self, tiles: &[Tiles]) -> Result<(f64, u64)> {
        let (backend, model) = (self.runner.backend(), self.runner.model());
        let parts = self.together(tiles)?.into_iter();
        let plans: Vec<Plan> = parts.map(|part| encode_plan(model, part)).collect();
        let recorded = |plan| {
            let mut exec = backend.link(plan)?;
            backend.capture(&mut exec)?;
            Ok(exec)
        };
        let mut execs = plans.iter().map(recorded).collect::<Result<Vec<_>>>()?;
        let (time, ()) = timed(|| {
            execs.iter_mut().try_for_each(|exec| backend.run(exec, None))?;
            self.wait()
        })?;
        Ok((time, plans.iter().map(|plan| plan.cost().flops).sum()))
    }

    fn run(&self, plan: &Plan) -> Result<()> {
        let backend = self.runner.backend();
        backend.run(&mut backend.link(plan)?, None)
    }

    /// Until the device has done everything: a read waits for what was enqueued before it.
    fn wait(&self) -> Result<()> {
        self.runner.backend().read(self.runner.model().areas().image_rows.bytes(), &mut [0u8])
    }
}

fn resize_plan(picture: &Picture) -> Plan {
    let mut plan = Plan::new(picture.resize.y.dtype());
    plan.push(picture.resize);
    plan
}

fn encode_plan(model: &dyn Vlm, tiles: &[Tiles]) -> Plan {
    model.encode_plan(tiles.iter().map(|picture| picture.tiles).sum())
}

fn decode(pictures: &[Bytes]) -> Result<Vec<Rgb>> {
    pictures.iter().map(|bytes| pixels(bytes)).collect()
}

/// Milliseconds, and what came of it.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let begin = Instant::now();
    let result = work()?;
    Ok((1e3 * begin.elapsed().as_secs_f64(), result))
}
