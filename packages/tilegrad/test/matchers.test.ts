import { reference, type Tensor, tensor, zeros } from 'tilegrad'
import { assertClose, tensorMatchers } from 'tilegrad/matchers'
import { describe, expect, test } from 'vitest'

expect.extend(tensorMatchers)

/** A device that cannot be read at once, as a GPU. */
const { readSync: _, ...later } = reference
const device = { ...later, name: 'later' }

const failure = (f: () => unknown): string => {
  try {
    f()
  } catch (error) {
    return (error as Error).message
  }
  return 'nothing thrown'
}

describe('toBeCloseToTensor', () => {
  test('compares with tensors, nested arrays and numbers', () => {
    const x = tensor([
      [1, 2],
      [3, 4],
    ])
    expect(x).toBeCloseToTensor(x)
    expect(x).toBeCloseToTensor([
      [1, 2],
      [3, 4.000001],
    ])
    expect(x.T).not.toBeCloseToTensor(x)
    expect(tensor(2.5)).toBeCloseToTensor(2.5)
    expect(tensor([1, 2])).toBeCloseToTensor(new Float32Array([1, 2]))
    expect(tensor([true, false])).toBeCloseToTensor([true, false])
    expect(zeros([0, 3])).toBeCloseToTensor(zeros([0, 3]))
  })

  // As torch.testing.assert_close: |a − b| ≤ atol + rtol · |b|.
  test.each<[string, Tensor, number, boolean]>([
    ['float32 within', tensor([1]), 1 + 1.1e-5, true],
    ['float32 beyond', tensor([1]), 1 + 1.3e-5, false],
    ['float64 within', tensor([1], { dtype: 'float64' }), 1 + 1.9e-7, true],
    ['float64 beyond', tensor([1], { dtype: 'float64' }), 1 + 2.1e-7, false],
    ['int32', tensor([1], { dtype: 'int32' }), 1 + 1e-9, false],
  ])('has tolerances by dtype: %s', (_, x, value, close) => {
    if (close) expect(x).toBeCloseToTensor([value])
    else expect(x).not.toBeCloseToTensor([value])
  })

  test('takes tolerances, NaN and dtypes as told', () => {
    expect(tensor([1, 2])).toBeCloseToTensor([1.05, 2.1], { rtol: 0.1 })
    expect(tensor([1, 2])).not.toBeCloseToTensor([1.05, 2.1], { atol: 0.06 })
    expect(tensor([Number.NaN])).not.toBeCloseToTensor([Number.NaN])
    expect(tensor([Number.NaN])).toBeCloseToTensor([Number.NaN], { equalNan: true })
    expect(tensor([Infinity])).toBeCloseToTensor([Infinity])
    expect(tensor([Infinity])).not.toBeCloseToTensor([-Infinity], { atol: Infinity })
    expect(tensor([1])).not.toBeCloseToTensor([Infinity], { rtol: 1 })
    expect(tensor([-0])).toBeCloseToTensor([0])
    const whole = tensor([1], { dtype: 'int32' })
    expect(whole).not.toBeCloseToTensor(tensor([1]))
    expect(whole).toBeCloseToTensor(tensor([1]), { checkDtype: false })
  })

  test('says how many elements differ, and which one most', () => {
    const x = tensor([
      [1, 2, 3],
      [4, 5, 6.5],
    ])
    const message = failure(() =>
      expect(x).toBeCloseToTensor([
        [1, 2.25, 3],
        [4, 5, 6],
      ]),
    )
    expect(message).toContain('2 of 6 elements differ (33.3 %)')
    expect(message).toContain(
      'largest absolute difference: 0.5 at [1, 2]: received 6.5, expected 6 (atol 0.00001)',
    )
    expect(message).toContain(
      'largest relative difference: 0.111111 at [0, 1]: received 2, expected 2.25 (rtol 0.0000013)',
    )
    expect(message).toContain('Received: tensor([[1.0000, 2.0000, 3.0000],')
    expect(failure(() => expect(x).toBeCloseToTensor([1]))).toContain(
      'the shapes differ: received [2, 3], expected [1]',
    )
    expect(failure(() => expect(x).not.toBeCloseToTensor(x))).toContain(
      'expected the tensors not to be close',
    )
    expect(failure(() => expect(tensor([Number.NaN])).toBeCloseToTensor([1]))).toContain(
      'not finite at [0]: received NaN',
    )
  })

  test('refuses what is no tensor, and options that it does not know', () => {
    expect(failure(() => expect('x').toBeCloseToTensor([1]))).toContain(
      "what is received must be a tensor or numbers in arrays, got 'x'",
    )
    expect(failure(() => expect(Promise.resolve()).toBeCloseToTensor([1]))).toContain('did you forget await?')
    const options = { rTol: 1 } as object
    expect(failure(() => expect(tensor([1])).toBeCloseToTensor([1], options))).toContain(
      "did you mean 'rtol'?",
    )
  })

  test('waits for devices that cannot be read at once', async () => {
    const x = tensor([1, 2], { device })
    await expect(x).toBeCloseToTensor([1, 2])
    await expect(x).not.toBeCloseToTensor([1, 3])
    await expect(
      (async () => {
        await expect(x).toBeCloseToTensor([1, 3])
      })(),
    ).rejects.toThrow('1 of 2 elements differ (50 %)')
  })
})

test('assertClose is the matcher for other runners', async () => {
  assertClose(tensor([1]), [1])
  expect(() => assertClose(tensor([1]), [2])).toThrow(/assertClose: 1 of 1 elements differ/)
  await expect(assertClose(tensor([1], { device }), [2])).rejects.toThrow(/received 1, expected 2/)
})
