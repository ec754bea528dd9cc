/** Rotary position embedding and its gradient against the composition on the reference backend, in float64. */

import { gradcheck, type RotaryOptions, reference, rotaryEmbedding, tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { testRotary } from '../../../test/kernels/rotary.cases.ts'
import { engine } from './support/engine.ts'

testRotary(engine)

test('the gradient can be differentiated again', () => {
  const x = tensor(
    Float64Array.from({ length: 18 }, (_, i) => Math.sin(i)),
    [3, 6],
    { device: reference },
  )
  expect(gradcheck((t) => rotaryEmbedding(t, { offset: 3, rotaryDim: 4 }), [x])).toBe(true)
})

test('refuses what makes no sense', () => {
  const x = tensor(new Float32Array(12), [3, 4], { device: reference })
  const bad = (options: RotaryOptions, message: RegExp, t = x): void =>
    expect(() => rotaryEmbedding(t, options)).toThrow(message)
  bad({ rotaryDim: 3 }, /rotaryDim 3 must be even/)
  bad({ frequencies: [1] }, /1 frequencies for rotaryDim 4; expected 2/)
  bad({ rotaryDim: 6 }, /from 0 to D = 4/)
  bad({ base: 0 }, /base must be > 0, got 0/)
  bad({ offset: 0.5 }, /offset 0.5 must be whole/)
  bad({ offset: 2 ** 24 }, /at most 2\^24/)
  bad({}, /takes \(…, T, D\), got \[2\]/, tensor([1, 2], { device: reference }))
  bad({}, /takes floating tensors, not int32/, x.to('int32'))
  const positions = tensor([1, 2], { device: reference, dtype: 'int32' })
  bad({ positions }, /shapes \[2\] and \[3\] do not broadcast/)
  const many = tensor([[1, 2, 3]], { device: reference, dtype: 'int32' })
  bad({ positions: many }, /positions \[1, 3\] do not broadcast to \[3\], x's shape without D/)
  bad({ positions: tensor([1, 2, 3], { device: reference }) }, /positions must be int32, not float32/)
  bad({ positions, offset: 1 }, /not both/)
})
