import { beforeEach, describe, expect, it } from 'vitest'
import {
  CompileError,
  compile,
  dropout,
  hostRandint,
  hostRandom,
  manualSeed,
  memory,
  noGrad,
  ones,
  profile,
  randn,
  scope,
  type Tensor,
  tensor,
} from '../src/index.ts'

describe('compile', () => {
  it('replays an elementwise chain as one kernel', async () => {
    let runs = 0
    const f = compile((x: Tensor) => {
      runs++
      return x.mul(2).add(1).relu()
    })
    for (let i = 0; i < 6; i++) {
      const y = f(tensor([i, -i, 1]))
      expect(await y.toArray()).toEqual([2 * i + 1, Math.max(0, 1 - 2 * i), 3])
    }
    expect(runs).toBe(2)
    expect(f.plans[0]?.launches).toBe(1)
    expect(String(f)).toContain('mul')
  })

  it('trains as eager does, in place, with gradients freed inside', async () => {
    const train = async (wrap: <A extends readonly unknown[], R>(fn: (...a: A) => R) => (...a: A) => R) => {
      manualSeed(3)
      const w = randn([4, 3]).detach()
      w.requiresGrad = true
      const step = wrap((x: Tensor) => {
        const loss = dropout(x.matmul(w), 0.3).square().mean()
        loss.backward()
        noGrad(() => w.sub_((w.grad as Tensor).mul(0.1)))
        w.grad?.dispose()
        w.grad = null
        return loss
      })
      const losses: number[] = []
      for (let i = 0; i < 12; i++) losses.push((await step(randn([5, 4])).item()) as number)
      return [losses, await w.detach().toArray()]
    }
    expect(await train((fn) => compile(fn, { fuse: false }))).toEqual(await train((fn) => fn))
  })

  it('leaves gradients that outlive it where they belong', async () => {
    const w = ones([2], { requiresGrad: true })
    const f = compile((x: Tensor) => {
      const loss = w.mul(x).sum()
      loss.backward()
      return loss
    })
    for (let i = 1; i < 8; i++) {
      await f(tensor([i, 2 * i])).item()
      expect(await w.grad?.toArray()).toEqual([i, 2 * i])
      if (i % 2) w.grad?.dispose()
      w.grad = null
    }
    // Left there, they add up.
    w.grad = null
    for (let i = 0; i < 6; i++) f(tensor([1, 1]))
    expect(await (w.grad as Tensor | null)?.toArray()).toEqual([6, 6])
  })

  it('names what differs', () => {
    let n = 0
    const f = compile((x: Tensor) => x.mul(n++))
    const call = (): void => {
      for (let i = 0; i < 9; i++) f(tensor([1]))
    }
    expect(call).toThrow(CompileError)
    expect(call).toThrow(/mul.*its number 0 was 3, then 4/)
    const g = compile((x: Tensor) => x.add(tensor([n++])))
    expect(() => {
      for (let i = 0; i < 9; i++) g(tensor([1]))
    }).toThrow(/made of other numbers each time; pass it as an argument/)
    const h = compile((x: Tensor) => (n++ % 2 ? x.exp() : x.log()))
    expect(() => {
      for (let i = 0; i < 9; i++) h(tensor([1]))
    }).toThrow(/exp of \[1\], then log of \[1\]|log of \[1\], then exp of \[1\]/)
  })

  it('refuses numbers that are drawn on the host: a replay would not draw them', () => {
    for (const draw of [hostRandom, () => hostRandint(3)])
      expect(() => compile((x: Tensor) => x.mul(draw()))(tensor([1]))).toThrow(
        /drawing a number on the host cannot be a part of a compiled function; draw it outside/,
      )
  })

  it('refuses reads', () => {
    expect(() => compile((x: Tensor) => x.dataSync())(tensor([1]))).toThrow(
      /reading a tensor \(dataSync\) cannot be a part of a compiled function; return the tensor/,
    )
  })

  it('has no graph behind its results, and backward() says who has to call it', () => {
    const w = tensor([1, 2], { requiresGrad: true })
    const f = compile((x: Tensor) => w.mul(x).sum())
    for (let i = 0; i < 3; i++) f(ones([2]))
    expect(() => f(ones([2])).backward()).toThrow(
      /by a compiled function, which must call backward\(\) itself$/,
    )
  })

  it('records each shape and each plain value by itself', async () => {
    const f = compile((x: Tensor, times: number) => x.mul(times))
    for (let i = 0; i < 4; i++)
      for (const n of [1, 3])
        for (const times of [2, 5]) expect(f(ones([n]), times).dataSync()[0]).toBe(times)
    expect(f.plans.length).toBe(4)
  })

  it('frees everything', () => {
    const before = memory().bytes
    const f = compile((x: Tensor) => x.exp().sum().log())
    scope(() => {
      for (let i = 0; i < 5; i++) f(ones([100, 100]))
    })
    f.dispose()
    expect(memory().bytes).toBe(before)
  })

  it('is seen by profiles', () => {
    const f = compile((x: Tensor) => x.sum())
    for (let i = 0; i < 4; i++) f(ones([3]))
    expect(profile(() => f(ones([3]))).rows.map(({ op }) => op)).toContain('sum')
  })
})
beforeEach(() => manualSeed(1))
