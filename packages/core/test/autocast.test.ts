/** What `autocast` does to weights, graphs and modes. What it makes of each operator is in test/autocast.test.ts. */
import { describe, expect, test } from 'vitest'
import {
  apply,
  autocast,
  type Backend,
  checkLeaks,
  checkpoint,
  compile,
  crossEntropy,
  dropout,
  embedding,
  GradError,
  grad,
  gradcheck,
  layerNorm,
  linear,
  linearCrossEntropy,
  manualSeed,
  memory,
  noGrad,
  type Op,
  ones,
  profile,
  randint,
  randn,
  reference,
  scope,
  softmax,
  type Tensor,
  tensor,
  ValueError,
} from '../src/index.ts'
import { listen } from '../src/kernel.ts'

/** The operators that `fn` runs, by name; with `of` only those that read it. */
function ops(fn: () => unknown, of?: Tensor): string[] {
  const names: string[] = []
  const before = listen({
    call(call, go) {
      if (of === undefined || call.inputs.some(({ buffer }) => buffer === of.buffer)) names.push(call.op)
      go()
    },
    begin: () => null,
    composed: () => {},
  })
  try {
    fn()
  } finally {
    listen(before)
  }
  return names
}

const weight = (shape: number[]): Tensor => randn(shape, { requiresGrad: true })

describe('the mode', () => {
  const [x, w] = [randn([3, 4]), weight([4, 5])]
  const product = (): string => x.matmul(w).dtype

  test('holds while the function runs, nests, and ends also where it throws', () => {
    expect(product()).toBe('float32')
    autocast('bfloat16', () => {
      expect(product()).toBe('bfloat16')
      expect(autocast('float16', product)).toBe('float16')
      expect(autocast('float32', product)).toBe('float32')
      expect(autocast('float32', () => autocast('float16', product))).toBe('float16')
      expect(() =>
        autocast('float16', () => {
          throw new Error('mine')
        }),
      ).toThrow('mine')
      expect(product()).toBe('bfloat16')
    })
    expect(product()).toBe('float32')
    expect(autocast('bfloat16', () => 'result')).toBe('result')
  })

  test('a function that returns a promise is refused', () => {
    expect(() => autocast('bfloat16', async () => 1)).toThrow(GradError)
    expect(() => autocast('bfloat16', async () => 1)).toThrow('autocast: the function returned a promise')
    expect(product()).toBe('float32')
  })

  test.each([
    [() => autocast('half' as 'float16', product), "did you mean 'float16'"],
    [() => autocast('bf16' as 'float16', product), "did you mean 'bfloat16'"],
    [() => autocast('float64' as 'float16', product), "not in 'float64'"],
    [() => autocast({ dtype: 'float16' } as never, product), "as autocast('bfloat16', () => …), got"],
    [() => autocast(product as never, 'float16' as never), "as autocast('bfloat16', () => …), got"],
    [() => autocast('float16', undefined as never), 'autocast: takes a function, got undefined'],
  ])('wrong guess %#', (call, message) => {
    expect(call).toThrow(message)
  })

  test('floats of 64 bits, integers and bools are left alone', () => {
    const [a, b] = [randn([2, 3], { dtype: 'float64' }), randn([3, 2], { dtype: 'float64' })]
    const i = tensor([[1, 2]], { dtype: 'int32' })
    autocast('float16', () => {
      expect(a.matmul(b).dtype).toBe('float64')
      expect(a.to('float32').matmul(b).dtype).toBe('float64')
      expect(a.exp().dtype).toBe('float64')
      expect(i.matmul(i.T).dtype).toBe('int32')
      expect(i.sum().dtype).toBe('int32')
    })
  })
})

describe('gradients', () => {
  test('of weights are of float32, and those of the products rounded to 16 bits', () => {
    const [x, w] = [randn([3, 4]), weight([4, 5])]
    const d = randn([3, 5])
    const y = autocast('bfloat16', () => x.matmul(w))
    y.backward({ gradient: d.to('bfloat16') })
    expect(w.grad?.dtype).toBe('float32')
    const want = x.to('bfloat16').T.matmul(d.to('bfloat16'))
    expect(w.grad?.dataSync()).toEqual(want.to('float32').dataSync())
  })

  test('are computed in the dtypes of the forward pass, also where backward() is called inside', () => {
    const [x, w] = [randn([3, 4]), weight([4, 5])]
    const run = (inside: boolean): Float32Array => {
      w.grad = null
      const loss = (): Tensor => x.matmul(w).exp().sum()
      if (inside) autocast('bfloat16', () => loss().backward())
      else autocast('bfloat16', loss).backward()
      return (w.grad as Tensor | null)?.dataSync() as Float32Array
    }
    expect(run(true)).toEqual(run(false))
    const inside = ops(() => autocast('bfloat16', () => grad(x.matmul(w.detach()).sum().mul(w.sum()), [w])))
    expect(inside.filter((name) => name === 'matmul').length).toBe(1)
  })

  test('of a weight that is used several times add up in float32', () => {
    const w = tensor([[1]], { requiresGrad: true })
    const x = tensor([[2 ** -10]])
    // In bfloat16 1 + 2⁻¹⁰ would be 1.
    autocast('bfloat16', () =>
      x
        .matmul(w)
        .add(tensor([[1]]).matmul(w))
        .sum(),
    ).backward()
    expect(w.grad?.itemSync()).toBe(1 + 2 ** -10)
  })

  test('of a weight that is tied to an embedding, over several losses, add up in float32', () => {
    const [w, idx] = [weight([5, 4]), tensor([[0, 3, 1]], { dtype: 'int32' })]
    const loss = (mode: 'bfloat16' | 'float32'): Tensor =>
      autocast(mode, () =>
        crossEntropy(
          linear(embedding(idx, w).tanh(), w).reshape([3, 5]),
          tensor([3, 1, 0], { dtype: 'int32' }),
        ),
      )
    const run = (mode: 'bfloat16' | 'float32'): Tensor => {
      w.grad = null
      for (let i = 0; i < 4; i++) loss(mode).div(4).backward()
      return w.grad as unknown as Tensor
    }
    const [exact, half] = [run('float32'), run('bfloat16')]
    expect(half.dtype).toBe('float32')
    const off = half.sub(exact).abs().amax().itemSync()
    expect(off).toBeLessThan(2 ** -7 * exact.abs().amax().itemSync())
    const [once] = grad(loss('bfloat16'), [w])
    // Quarters are rounded as the whole is.
    expect(half.sub(once).abs().amax().itemSync()).toBeLessThan(1e-6)
  })

  test('pass through all that a linear layer adds', () => {
    const [x, w, b, r] = [weight([3, 4]), weight([5, 4]), weight([5]), weight([3, 5])]
    const run = (): Tensor =>
      linear(x, w, b, { activation: 'gelu', residual: r })
        .mul(randn([3, 5]))
        .sum()
    const grads = (loss: Tensor): Tensor[] => grad(loss, [x, w, b, r])
    manualSeed(1)
    const exact = grads(run())
    manualSeed(1)
    const half = grads(autocast('bfloat16', run))
    for (const [i, g] of half.entries()) {
      expect(g.dtype).toBe('float32')
      // 2⁻⁹ for each rounding, of terms up to 3.
      const off = g.sub(exact[i]).abs().amax().itemSync()
      expect(off).toBeLessThan(0.1)
    }
    expect(half[3].dataSync()).toEqual(exact[3].dataSync())
  })

  test('of gradients are right: gradcheck in float64, which is left alone, and in 16 bits against float32', () => {
    const [x, w] = [randn([2, 3], { dtype: 'float64' }), randn([3, 2], { dtype: 'float64' })]
    gradcheck((x, w) => autocast('bfloat16', () => (x as Tensor).matmul(w as Tensor).tanh()), [x, w])
    const [a, b] = [weight([4, 4]), weight([4, 4])]
    const second = (): Tensor => {
      const [da] = grad(a.matmul(b).tanh().sum(), [a], { createGraph: true }) as [Tensor]
      return grad(da.square().sum(), [b])[0]
    }
    const [exact, half] = [second(), autocast('bfloat16', second)]
    expect(half.sub(exact).abs().amax().itemSync()).toBeLessThan(0.15 * exact.abs().amax().itemSync())
  })
})

describe('weights', () => {
  test('are cast once, and again where they have changed', () => {
    const [x, w] = [randn([3, 4]), weight([4, 4])]
    const twice = (): unknown => autocast('bfloat16', () => [x.matmul(w), x.matmul(w)])
    expect(ops(twice, w)).toEqual(['copy'])
    // So is what several products in a row read.
    expect(ops(twice, x)).toEqual(['copy'])
    const changed = (): unknown =>
      autocast('bfloat16', () => {
        const [before, after] = [x.matmul(w), scope(() => x.mul_(2).matmul(w))]
        expect(after.dataSync()).toEqual(before.mul(2).dataSync())
      })
    expect(ops(changed, x)).toEqual(['copy', 'mul_', 'copy'])
    autocast('float16', () => {
      const before = x.matmul(w)
      noGrad(() => w.mul_(2))
      const after = x.matmul(w)
      expect(after.dataSync()).toEqual(before.mul(2).dataSync())
    })
  })

  test('cast without recording, and then used with it, get gradients', () => {
    const [x, w] = [randn([3, 4]), weight([4, 4])]
    autocast('bfloat16', () => {
      noGrad(() => x.matmul(w))
      x.matmul(w).sum().backward()
    })
    expect(w.grad?.shape).toEqual([4, 4])
  })

  test('outlive the scope in which they are cast first', () => {
    const [x, w] = [randn([3, 4]), weight([4, 4])]
    const [a, b] = autocast('bfloat16', () => [scope(() => x.matmul(w)), scope(() => x.matmul(w))])
    expect(a.dataSync()).toEqual(b.dataSync())
    a.add(b).sum().backward()
    expect(w.grad?.dtype).toBe('float32')
  })

  test('leave nothing behind', () => {
    const [x, w] = [randn([3, 4]), weight([4, 4])]
    checkLeaks(() => scope(() => autocast('bfloat16', () => x.matmul(w).sum().itemSync())), { kept: true })
    checkLeaks(
      () =>
        scope(() => {
          autocast('float16', () => x.matmul(w).relu().matmul(w).sum()).backward()
          w.grad?.dispose()
          w.grad = null
        }),
      { kept: true },
    )
    expect(() =>
      checkLeaks(
        () => {
          try {
            scope(() =>
              autocast('float16', () => {
                x.matmul(w)
                throw new Error('mine')
              }),
            )
          } catch {}
        },
        { kept: true },
      ),
    ).not.toThrow()
  })

  test('take no more memory the longer one call lasts', () => {
    const [x, w] = [randn([3, 4]), weight([4, 4])]
    autocast('bfloat16', () => {
      const step = (): void =>
        scope(() => {
          x.matmul(w).sum().backward()
          noGrad(() => w.sub_((w.grad as Tensor).mul(0.01)))
          w.grad?.dispose()
          w.grad = null
        })
      step()
      const { bytes, tensors } = memory()
      for (let i = 0; i < 20; i++) step()
      expect(memory()).toMatchObject({ bytes, tensors })
    })
  })
})

describe('composes', () => {
  const block = (x: Tensor, w: Tensor, v: Tensor): Tensor =>
    dropout(layerNorm(x, 8).matmul(w).gelu(), 0.2).matmul(v).add(x)

  test('with checkpoint: the same bits, computed again in the dtypes of its forward pass', () => {
    const [x, w, v] = [randn([4, 8]), weight([8, 8]), weight([8, 8])]
    const run = (again: boolean): Tensor[] => {
      manualSeed(5)
      const f = (x: Tensor): Tensor => block(block(x, w, v), w, v)
      const y = autocast('float16', () => (again ? checkpoint(f, x) : f(x)))
      return grad(y.square().sum(), [w, v])
    }
    const [plain, again] = [run(false), run(true)]
    for (const [i, g] of again.entries()) expect(g.dataSync()).toEqual(plain[i].dataSync())
    // Outside of autocast a checkpoint within it is recomputed in 16 bits, one outside of it never is.
    const inside = ops(() => {
      const y = checkpoint((x: Tensor) => x.matmul(w), x)
      autocast('float16', () => y.sum().backward())
    })
    expect(inside.filter((name) => name === 'copy')).toEqual([])
    checkLeaks(() => scope(() => void run(true)))
  })

  test.each([true, false])('with compile, fuse: %s: weights are cast anew in each replay', (fuse) => {
    const make = (): { w: Tensor; step: (x: Tensor, t: Tensor) => Tensor } => {
      manualSeed(7)
      const [w, v] = [weight([8, 8]), weight([8, 8])]
      const step = (x: Tensor, t: Tensor): Tensor => {
        const loss = autocast('bfloat16', () => crossEntropy(layerNorm(x, 8).matmul(w).gelu().matmul(v), t))
        loss.backward()
        noGrad(() => {
          for (const p of [w, v]) {
            p.sub_((p.grad as Tensor).mul(0.1))
            p.grad?.dispose()
            p.grad = null
          }
        })
        return loss.detach()
      }
      return { w, step }
    }
    const [a, b] = [make(), make()]
    const compiled = compile(b.step, { fuse })
    for (let i = 0; i < 8; i++) {
      const [x, t] = [randn([4, 8]), randint(0, 8, [4])]
      const [want, got] = [scope(() => a.step(x, t)), compiled(x, t)]
      // Fused chains round less often than 2⁻⁹ relative at each step.
      if (fuse) expect(Math.abs(got.itemSync() - want.itemSync())).toBeLessThan(0.03)
      else expect(got.itemSync()).toBe(want.itemSync())
    }
    expect(compiled.plans.length).toBe(1)
    if (!fuse) expect(b.w.dataSync()).toEqual(a.w.dataSync())
    compiled.dispose()
  })

  test('around a compiled function, which is recorded for each dtype', () => {
    const w = weight([8, 8])
    const f = compile((x: Tensor) => {
      const y = x.matmul(w)
      noGrad(() => w.mul_(1.5))
      return y
    })
    const x = randn([2, 8])
    for (let i = 0; i < 6; i++) {
      const want = autocast('float16', () => x.matmul(w)).dataSync()
      autocast('float16', () => {
        x.matmul(w)
        expect(f(x).dataSync()).toEqual(want)
      })
    }
    expect(f(x).dtype).toBe('float32')
    f.dispose()
  })

  test('with operators of the user', () => {
    const project: Op<object> = { name: 'project', precision: 2, compose: ([x, w]) => [x.matmul(w)] }
    const loss: Op<object> = { name: 'my_loss', precision: 'float32', compose: ([x]) => [x.mul(x)] }
    const free: Op<object> = { name: 'free', compose: ([x, w]) => [x.matmul(w).softmax(1)] }
    const [x, w] = [randn([2, 8]), weight([8, 8])]
    autocast('bfloat16', () => {
      const [y] = apply(project, [x, w], {})
      expect(y.dtype).toBe('bfloat16')
      expect(apply(loss, [y], {})[0].dtype).toBe('float32')
      expect(apply(free, [x, w], {})[0].dtype).toBe('float32')
      expect(ops(() => apply(free, [x, w], {}))).toContain('copy')
    })
  })

  test('with the loss of a large vocabulary in chunks', () => {
    const [x, w, t] = [weight([6, 4]), weight([10, 4]), randint(0, 10, [6])]
    const run = (chunkSize: number): [Tensor, Tensor[]] => {
      const loss = autocast('bfloat16', () => linearCrossEntropy(x, w, t, { chunkSize }))
      return [loss, grad(loss, [x, w])]
    }
    const [[whole, a], [parts, b]] = [run(6), run(2)]
    expect(parts.dtype).toBe('float32')
    expect(parts.itemSync()).toBeCloseTo(whole.itemSync(), 6)
    for (const [i, g] of b.entries()) {
      expect(g.dtype).toBe('float32')
      expect(g.sub(a[i]).abs().amax().itemSync()).toBeLessThan(2 ** -8)
    }
  })
})

test('a program that never calls it runs what it ran', () => {
  const [x, w] = [randn([2, 3]), randn([3, 2])]
  expect(ops(() => x.matmul(w).exp().sum())).toEqual(['matmul', 'exp', 'sum'])
  expect(profile(() => x.matmul(w)).result.dtype).toBe('float32')
  expect(() => autocast(1 as never, () => 1)).toThrow(ValueError)
})

test('a kernel that fills float32 from 16 bits is given them as they are, another one float32', () => {
  const log: string[] = []
  const of = (wide: boolean): Backend => ({
    ...reference,
    name: `autocast ${wide}`,
    kernels: {
      ...reference.kernels,
      softmax: {
        wide,
        dtypes: [['float32', 'bfloat16']],
        run([y], [x]) {
          log.push(`${x.dtype} ${y.dtype}`)
        },
      },
    },
  })
  for (const wide of [true, false]) {
    const x = ones([2, 3], { device: of(wide) }).to('bfloat16')
    expect(autocast('bfloat16', () => softmax(x, 1)).dtype).toBe('float32')
    expect(softmax(x, 1).dtype).toBe('bfloat16')
  }
  expect(log).toEqual(['bfloat16 float32', 'bfloat16 bfloat16', 'float32 float32', 'bfloat16 bfloat16'])
})
