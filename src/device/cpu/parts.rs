//! Several mutable slices cut alike, so that one task can write its share of each.

use super::Cpu;

/// A mutable slice of `samples × sample` elements, each sample cut into slices.
#[derive(Debug)]
pub struct Cut<'a> {
    pub data: &'a mut [f32],
    /// Elements of one sample.
    pub sample: usize,
    /// Elements of one slice; the last slice of a sample may be shorter.
    pub slice: usize,
}

/// `task(sample, slice, parts)`: `parts[k]` is that slice of the k-th cut.
pub type CutTask<'a, const N: usize> = dyn Fn(usize, usize, [&mut [f32]; N]) + Sync + 'a;

/// What tasks on several threads cut disjoint parts from.
struct Shared {
    pointer: *mut f32,
    sample: usize,
    slice: usize,
}

// SAFETY: `Shared::part` gives different tasks disjoint parts, so no element is reached by two
// threads.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `sample` is below the number of samples that the slice holds, and no other task asks for the
    /// same (`sample`, `slice`).
    unsafe fn part<'a>(&self, sample: usize, slice: usize) -> &'a mut [f32] {
        let start = (slice * self.slice).min(self.sample);
        let end = ((slice + 1) * self.slice).min(self.sample);
        // SAFETY: start ≤ end ≤ sample, so the part lies inside its sample, samples lie behind one
        // another, and parts of one sample with different `slice` don't meet.
        unsafe {
            let pointer = self.pointer.add(sample * self.sample + start);
            std::slice::from_raw_parts_mut(pointer, end - start)
        }
    }
}

impl Cpu {
    /// Calls `task(sample, slice, parts)` once for each `sample < samples` and `slice < slices`,
    /// on any thread and in any order; `parts[k]` is that slice of `data[k]`.
    ///
    /// # Panics
    /// When a cut asks for more elements than its slice has, or leaves elements of a sample out.
    pub fn cut_mut<const N: usize>(
        &self,
        samples: usize,
        slices: usize,
        data: [Cut<'_>; N],
        task: &CutTask<N>,
    ) {
        let shared = data.map(|cut| {
            assert!(samples * cut.sample <= cut.data.len(), "a cut beyond its slice");
            assert!(slices * cut.slice >= cut.sample, "a cut that leaves elements out");
            Shared { pointer: cut.data.as_mut_ptr(), sample: cut.sample, slice: cut.slice }
        });
        let shared = &shared;
        self.run(samples * slices, &|index| {
            let (sample, slice) = (index / slices, index % slices);
            // SAFETY: sample < samples, which the assertion above proved to fit, and each index is
            // run once; `data` stays borrowed mutably until `run` returns.
            let parts = std::array::from_fn(|k| unsafe { shared[k].part(sample, slice) });
            task(sample, slice, parts);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_gets_its_parts() {
        let cpu = Cpu::new(3);
        let (mut a, mut b) = (vec![0.0; 10], vec![0.0; 4]);
        let cuts =
            [Cut { data: &mut a, sample: 5, slice: 3 }, Cut { data: &mut b, sample: 2, slice: 1 }];
        cpu.cut_mut(2, 2, cuts, &|sample, slice, [a, b]| {
            a.fill((2 * sample + slice) as f32);
            b[0] = a.len() as f32;
        });
        assert_eq!(a, [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0]);
        assert_eq!(b, [3.0, 2.0, 3.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_cut_beyond_the_slice_is_refused() {
        let cut = Cut { data: &mut [0.0; 9], sample: 5, slice: 5 };
        Cpu::new(1).cut_mut(2, 1, [cut], &|_, _, _| {});
    }

    #[test]
    #[should_panic(expected = "leaves elements out")]
    fn a_cut_that_leaves_elements_out_is_refused() {
        let cut = Cut { data: &mut [0.0; 10], sample: 5, slice: 2 };
        Cpu::new(1).cut_mut(2, 2, [cut], &|_, _, _| {});
    }
}
