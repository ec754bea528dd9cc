import { describe, expect, test } from 'vitest'
import { add, customFunction, dataSync, grad, gradcheck, noGrad, type Tensor, tensor } from '../src/index.ts'

const leaf = (values: readonly number[]): Tensor => tensor([...values], { requiresGrad: true })
const values = (t: Tensor | null): number[] | null => t && [...dataSync(t)]

describe('customFunction', () => {
  const cube = customFunction({
    name: 'cube',
    forward: (ctx, x) => {
      ctx.save(x, x.square())
      return x.mul(x.square())
    },
    backward: (ctx, d) => [d.mul(ctx.saved[1]).mul(3)],
  })

  test('has the gradient it was given', () => {
    const x = leaf([2, -1])
    const y = cube(x)
    expect(y.gradFn?.name).toBe('cube')
    y.sum().backward()
    expect(values(x.grad)).toEqual([12, 3])
    gradcheck(cube, [tensor([0.5, -1.5])])
  })

  test('is differentiated again through what it saved of its inputs', () => {
    const square = customFunction({
      forward: (ctx, x) => {
        ctx.save(x)
        return x.square()
      },
      backward: (ctx, d) => [d.mul(ctx.saved[0]).mul(2)],
    })
    const x = leaf([3])
    const [g] = grad(square(x).sum(), [x], { createGraph: true })
    expect(values(grad(g.sum(), [x])[0])).toEqual([2])
  })

  test('may give gradients to some inputs only', () => {
    const first = customFunction({
      forward: (ctx, a, b) => {
        expect(ctx.needsInputGrad).toEqual([true, false])
        return a.mul(b)
      },
      backward: (_, d) => [d.mul(7), null],
    })
    const a = leaf([1])
    first(a, tensor([5]))
      .sum()
      .backward()
    expect(values(a.grad)).toEqual([7])
  })

  test('records nothing without need', () => {
    expect(cube(tensor([1])).requiresGrad).toBe(false)
    expect(noGrad(() => cube(leaf([1]))).requiresGrad).toBe(false)
  })

  test('says what is wrong with what its rules return', () => {
    const rule = (forward: (x: Tensor) => unknown, backward: (d: Tensor) => unknown): (() => void) => {
      const op = customFunction({
        name: 'mine',
        forward: (_, x) => forward(x) as Tensor,
        backward: (_, d) => backward(d) as Tensor[],
      })
      return () =>
        op(leaf([1, 2, 3]))
          .sum()
          .backward()
    }
    const twice = (x: Tensor): Tensor => x.mul(2)
    for (const result of [undefined, 3, [leaf([1])]])
      expect(
        rule(
          () => result,
          (d) => [d],
        ),
      ).toThrow(/^mine: forward: takes a tensor/)
    for (const [result, words] of [
      [undefined, /^mine: backward must return an array of 1, .* got undefined/],
      [[], /^mine: backward must return an array of 1/],
      [[leaf([1, 2, 3]), null], /^mine: backward must return an array of 1/],
      [[3], /^mine: backward: gradient 0 must be a tensor or null, got 3/],
      [[leaf([1])], /^mine: backward: gradient 0 is \[1\], its input \[3\]/],
      [[leaf([1, 2])], /^mine: backward/],
    ] as const)
      expect(rule(twice, () => result)).toThrow(words)
    // What broadcasts is summed, and another dtype converted.
    const x = leaf([1, 2, 3])
    customFunction({ forward: (_, a) => a.mul(2), backward: (_, d) => [d.expand([2, 3]).to('float64')] })(x)
      .sum()
      .backward()
    expect([x.grad?.dtype, ...(values(x.grad) as number[])]).toEqual(['float32', 2, 2, 2])
  })

  test('may return its input', () => {
    const stop = customFunction({ forward: (_, x) => x, backward: () => [null] })
    const x = leaf([4])
    const y = stop(x)
    expect(values(y)).toEqual([4])
    add(y, x).sum().backward()
    expect(values(x.grad)).toEqual([1])
  })
})
