import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  add,
  customFunction,
  dataSync,
  grad,
  layerNorm,
  memory,
  mul,
  noGrad,
  ones,
  randn,
  reclaim,
  resetPeakMemory,
  scope,
  softmax,
  type Tensor,
  tensor,
  zeros,
} from '../src/index.ts'
import { collected } from './support/collected.ts'

const alive = (): { tensors: number; storages: number; bytes: number } => {
  const { tensors, storages, bytes } = memory()
  return { tensors, storages, bytes }
}

let baseline = alive()
/** What the test itself made and has to free, so that the next one starts even. */
let mine: Tensor[] = []
const own = (t: Tensor): Tensor => {
  mine.push(t)
  return t
}
beforeEach(async () => {
  await collected()
  baseline = alive()
  mine = []
})
afterEach(() => {
  for (const t of mine) {
    t.grad?.dispose()
    t.dispose()
  }
})
const over = (): { tensors: number; storages: number; bytes: number } => {
  const now = alive()
  return {
    tensors: now.tensors - baseline.tensors,
    storages: now.storages - baseline.storages,
    bytes: now.bytes - baseline.bytes,
  }
}
const NOTHING = { tensors: 0, storages: 0, bytes: 0 }

describe('dispose', () => {
  test('frees memory with the last view of it', () => {
    const x = zeros([10])
    const view = x.narrow(0, 2, 3)
    expect(over()).toEqual({ tensors: 2, storages: 1, bytes: 40 })
    x.dispose()
    expect([x.disposed, view.disposed]).toEqual([true, false])
    expect([...dataSync(view)]).toEqual([0, 0, 0])
    view.dispose()
    view.dispose()
    expect(over()).toEqual(NOTHING)
  })

  test('makes later use an error that says who freed it', () => {
    const x = zeros([2, 3])
    x.dispose()
    expect(() => dataSync(x)).toThrow('tensor [2, 3] was freed by dispose(); use it before it is disposed')
    expect(() => x.add(1)).toThrow('was freed by dispose()')
    expect(() => x.narrow(0, 0, 1)).toThrow('was freed by dispose()')
    expect(String(x)).toContain('freed')
  })

  test('happens at the end of a block with `using`', () => {
    {
      using x = zeros([100])
      using y = x.add(1)
      expect(y.numel).toBe(100)
      expect(over().bytes).toBe(800)
    }
    expect(over()).toEqual(NOTHING)
  })
})

describe('scope', () => {
  test('frees temporaries and keeps what it returns, anywhere in it', () => {
    const out = scope(() => {
      const x = zeros([4])
      const [a, b, c] = [x.add(1), x.add(2), x.add(3)]
      x.add(4)
      return { list: [a], map: new Map([['b', b]]), set: new Set([c]), n: 3 }
    })
    expect(over()).toEqual({ tensors: 3, storages: 3, bytes: 48 })
    const tensors = [...out.list, ...out.map.values(), ...out.set]
    expect(tensors.map((t) => dataSync(t)[0])).toEqual([1, 2, 3])
    for (const t of tensors) t.dispose()
    expect(over()).toEqual(NOTHING)
  })

  test('says so when a temporary escapes it', () => {
    let escaped: Tensor | null = null
    scope(() => {
      escaped = zeros([3])
    })
    expect(() => dataSync(escaped as unknown as Tensor)).toThrow(
      'tensor [3] was freed by scope(); return it from the scope, or call .keep() on it inside',
    )
  })

  test('leaves kept tensors alone', () => {
    let inside: Tensor | null = null
    scope(() => {
      inside = own(zeros([3]).keep())
    })
    expect((inside as unknown as Tensor).disposed).toBe(false)
  })

  test('returns what the graph of its result needs', () => {
    const x = own(ones([3], { requiresGrad: true }))
    const y = scope(() => {
      const scale = tensor([1, 2, 3])
      zeros([100])
      return x.mul(scale).sum()
    })
    y.backward()
    expect([...dataSync(x.grad as Tensor)]).toEqual([1, 2, 3])
    y.dispose()
  })

  test('nests: an inner result lives as long as the outer scope', () => {
    let inner: Tensor | null = null
    const out = scope(() => {
      inner = scope(() => zeros([2]))
      return inner.add(1)
    })
    expect((inner as unknown as Tensor).disposed).toBe(true)
    expect(over()).toEqual({ tensors: 1, storages: 1, bytes: 8 })
    out.dispose()
  })

  test('frees everything when it throws', () => {
    expect(() =>
      scope(() => {
        zeros([5]).add(1)
        throw new Error('stop')
      }),
    ).toThrow('stop')
    expect(over()).toEqual(NOTHING)
  })

  test('refuses asynchronous functions and frees what they made', () => {
    expect(() => scope(async () => zeros([5]))).toThrow('scope: the function returned a promise')
    expect(over()).toEqual(NOTHING)
  })
})

describe('training', () => {
  /** One step of a small network with composed operators, hooks and a custom function. */
  const clamp01 = customFunction({
    forward: (ctx, x) => {
      ctx.save(x.gt(0))
      return x.clamp(0, 1)
    },
    backward: (ctx, d) => [d.mul(ctx.saved[0])],
  })
  const loss = (x: Tensor, w: Tensor, g: Tensor): Tensor => {
    const h = layerNorm(x.matmul(w), [4], g).gelu()
    return softmax(clamp01(h).add(h.std(1, { keepdim: true })), 1)
      .square()
      .mean()
  }

  test('keeps counts flat inside a scope', () => {
    const x = own(randn([5, 3]))
    const w = own(randn([3, 4], { requiresGrad: true }))
    const g = own(ones([4], { requiresGrad: true }))
    const step = (): void =>
      scope(() => {
        loss(x, w, g).backward()
        noGrad(() => {
          for (const p of [w, g]) {
            p.sub_(mul(p.grad as Tensor, 0.1))
            p.grad?.dispose()
            p.grad = null
          }
        })
      })
    step()
    const before = alive()
    for (let i = 0; i < 20; i++) step()
    expect(alive()).toEqual(before)
  })

  test('without a scope, backward lets go of the graph: only scalars and results stay', () => {
    const x = own(randn([50, 3]))
    const w = own(randn([3, 4], { requiresGrad: true }))
    const g = own(ones([4], { requiresGrad: true }))
    own(loss(x, w, g)).backward()
    w.grad?.dispose()
    g.grad?.dispose()
    w.grad = g.grad = null
    reclaim()
    const before = over().bytes
    for (let i = 0; i < 10; i++) own(loss(x, w, g)).backward()
    reclaim()
    // Ten losses of 4 bytes, the gradients, and single numbers: no activation of 50 rows.
    expect(over().bytes - before).toBeLessThan(50 * 4 * 4)
  })

  test('gradients returned by grad belong to the caller', () => {
    const x = own(randn([3, 4], { requiresGrad: true }))
    const gs = grad(x.square().sum(), [x])
    expect(gs[0].disposed).toBe(false)
    gs[0].dispose()
  })

  test('gradients of inputs that grad was not asked for leak nothing', () => {
    const [x, w] = [own(randn([3, 3])), own(randn([3, 3]))]
    for (const t of [x, w]) t.requiresGrad = true
    scope(() => void grad(x.exp().matmul(w).sum(), [w]))
    expect(over()).toEqual({ tensors: 2, storages: 2, bytes: 72 })
  })

  test('second derivatives leak nothing out of a scope', () => {
    const x = own(randn([3, 4], { requiresGrad: true }))
    const before = alive()
    scope(() => {
      const [g] = grad(softmax(x, 1).square().sum(), [x], { createGraph: true })
      grad(g.square().sum(), [x])
    })
    expect(alive()).toEqual(before)
  })
})

describe('the safety net', () => {
  test('frees what became unreachable', async () => {
    // What earlier tests have left would go as well.
    await collected()
    const before = alive().storages
    for (let i = 0; i < 50; i++) add(zeros([100]), 1)
    expect(alive().storages).toBe(before + 100)
    await collected()
    // What the last round made may lie in a place of the frame that nothing has written to since.
    expect(alive().storages - before).toBeLessThanOrEqual(2)
  })
})

describe('memory', () => {
  test('tells the peak since it was reset', () => {
    resetPeakMemory()
    const before = memory().peakBytes
    zeros([1000]).dispose()
    zeros([10]).dispose()
    expect(memory().peakBytes - before).toBe(4000)
    resetPeakMemory()
    expect(memory().peakBytes).toBe(before)
  })
})
