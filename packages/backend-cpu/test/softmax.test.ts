/** Softmax, log-softmax and their gradients against the composition on the reference backend, in float64. */

import { expect, test } from 'vitest'
import { dense } from '../../../test/kernels/operand.ts'
import { random } from '../../../test/kernels/random.ts'
import { testSoftmax } from '../../../test/kernels/softmax.cases.ts'
import { expBelow } from '../src/kernels/softmax.ts'
import { f32x4, i32, v128 } from '../src/wasm/index.ts'
import { backends, engine } from './support/engine.ts'
import { get, output, put, release } from './support/memory.ts'

testSoftmax(engine, {
  // x − m, of size up to 60, is rounded by 2e-6, which exp makes a relative error; exp adds as much as 4e-6 (see
  // expBelow), the sum little. The gradient subtracts terms of size up to |y dy|.
  softmax: [
    [1e-37, 8e-6],
    [1e-6, 1e-5],
  ],
  // The output is a difference of numbers of size |x| ≤ 30.
  log_softmax: [
    [4e-6, 1e-6],
    [5e-6, 1e-5],
  ],
})

test('expBelow is as exact as it says, down to where it gives 0', () => {
  const n = 100_000
  const rnd = random(41)
  const x = dense([n], (i) => (i < 4 ? [0, -Infinity, Number.NaN, -1e30][i] : -90 * rnd() ** 2))
  for (const { name, backend } of backends) {
    const { engine } = backend
    const kernel = engine.kernel('test expBelow', (m) => {
      m.kernel('main', (f, start, end, params) => {
        const [from, to] = [f.let(i32.load(params)), f.let(i32.load(params, 4))]
        const exp = expBelow(f)
        const zero = f.let(f32x4.const(0))
        f.for(start, end, 1, (i) => {
          const byte = f.let(i.shl(4))
          f.store(to.add(byte), exp(v128.load(from.add(byte)), zero))
        })
      })
    })
    const [input, out] = [put(engine, x), output(engine, [n], 'float32')]
    engine.run(kernel, n / 4, n, [engine.address(input), engine.address(out)])
    const got = get(engine, out)
    release(engine, [input, out])
    expect(Array.from(got.subarray(0, 4))).toEqual([1, 0, Number.NaN, 0])
    const slope = engine.features.relaxed ? 1.4e-8 : 7.5e-8
    for (let i = 4; i < n; i++) {
      const d = x.data[i] as number
      const want = Math.exp(d)
      // Below 2⁻¹²⁶ results lose bits, and below 2⁻¹²⁶·⁵ they are 0.
      const allowed = d < -87.3 ? 2 ** -126 : want * (1.6e-7 - slope * d)
      if (!(Math.abs((got[i] as number) - want) <= allowed))
        expect.fail(`${name}: exp(${d}) is ${want}, got ${got[i]}`)
    }
  }
})
