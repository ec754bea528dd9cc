import {
  type Backend,
  checkLeaks,
  checkpoint,
  compile,
  customFunction,
  detectAnomaly,
  detectAnomalyAsync,
  grad,
  ones,
  reference,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { describe, expect, it } from 'vitest'

/** 0 · ∞ in the gradient of a square root, in a function whose name the stack shows. */
function rootOfZero(x: Tensor): Tensor {
  return x.mul(2).sqrt()
}

const leaf = (values: number[]): Tensor => tensor(values, { requiresGrad: true })

const messageOf = (fn: () => unknown): string => {
  try {
    fn()
  } catch (error) {
    expect((error as Error).name).toBe('GradError')
    return (error as Error).message
  }
  return ''
}

const unread = (): Backend => {
  const { readSync: _, ...rest } = reference
  return Object.setPrototypeOf(rest, Object.getPrototypeOf(reference)) as Backend
}

describe('detectAnomaly', () => {
  it('names the operator, its shapes, the element and the place where it was called', () => {
    const x = leaf([4, 0, 1])
    const step = () =>
      scope(() =>
        rootOfZero(x)
          .mul(tensor([1, 0, 1]))
          .sum()
          .backward(),
      )
    const message = messageOf(() => detectAnomaly(step))
    expect(message).toContain(
      'sqrt: in the backward pass the gradient of its input 0 became NaN ([3] → [3]), first at element 1, where its inputs are 0.',
    )
    const [first = ''] = message.split('\n').slice(1)
    expect(first).toContain('rootOfZero')
    expect(message).toContain('anomaly.test.ts')
    expect(message).not.toMatch(/core\/src/)
    // Without it nothing is said, and afterwards neither.
    step()
    expect(messageOf(step)).toBe('')
  })

  it('says nothing of infinities, and returns what the function returns', () => {
    const x = leaf([0, 1])
    const y = detectAnomaly(() => {
      const y = x.log().sum()
      y.backward()
      return y
    })
    expect(y.itemSync()).toBe(-Infinity)
    expect([...(x.grad as Tensor).dataSync()]).toEqual([Infinity, 1])
  })

  it('tells what was NaN before', () => {
    const x = leaf([1, NaN])
    expect(messageOf(() => detectAnomaly(() => x.log().sum().backward()))).toContain(
      'so was its input 0 in the forward pass',
    )
    const y = leaf([1, 2])
    const seeded = () => y.mul(3).backward({ gradient: tensor([NaN, 1]) })
    expect(messageOf(() => detectAnomaly(seeded))).toContain('so was the gradient that came to it')
    const z = leaf([0])
    // ∞ − ∞, where two paths meet.
    const meeting = () => {
      const w = z.mul(1)
      w.log().sub(w.log().add(1)).backward()
    }
    expect(messageOf(() => detectAnomaly(meeting))).toMatch(/^mul: .*so was the gradient that came to it/)
  })

  it('looks at no gradient that nobody needs, and into gradients of operators and of gradients', () => {
    const [x, free] = [leaf([1]), tensor([0])]
    // d/d free would be 0 · ∞.
    expect(messageOf(() => detectAnomaly(() => x.mul(0).add(free.sqrt()).backward()))).toBe('')
    const second = () => {
      const y = leaf([0])
      const [dy] = grad(y.pow(1.5).sum(), [y], { createGraph: true }) as [Tensor]
      dy.mul(0).sum().backward()
    }
    const message = messageOf(() => detectAnomaly(second))
    expect(message).toMatch(/^pow.*, in the gradient of pow/)
    expect(message).toContain('anomaly.test.ts')
  })

  it('looks into checkpoints and functions of users', () => {
    const x = leaf([0])
    const message = messageOf(() => detectAnomaly(() => checkpoint(rootOfZero, x).mul(0).backward()))
    expect(message).toMatch(/^sqrt: /)
    expect(message.split('\n')[1]).toContain('rootOfZero')
    const broken = customFunction({
      name: 'broken',
      forward: (_, t: Tensor) => t.mul(2),
      backward: (_, d: Tensor) => [d.mul(NaN)],
    })
    expect(messageOf(() => detectAnomaly(() => (broken(x) as Tensor).backward()))).toMatch(/^broken: /)
  })

  it('nests, ends with its function, and leaves nothing behind', () => {
    const x = leaf([0])
    let y: Tensor | null = null
    expect(
      messageOf(() => detectAnomaly(() => detectAnomaly(() => rootOfZero(x).mul(0).backward()))),
    ).toMatch(/^sqrt/)
    detectAnomaly(() => {
      y = rootOfZero(x).mul(0)
    })
    expect(messageOf(() => (y as Tensor | null)?.backward())).toBe('')
    x.grad = null
    checkLeaks(() => {
      expect(messageOf(() => detectAnomaly(() => scope(() => rootOfZero(x).mul(0).backward())))).toMatch(
        /^sqrt/,
      )
    })
  })

  it('refuses promises, compiled functions, and devices that cannot be read at once', () => {
    expect(() => detectAnomaly(async () => 1)).toThrow('Await outside')
    const x = leaf([1])
    const compiled = compile(() => x.mul(2).sum())
    expect(() => detectAnomaly(compiled)).toThrow('detectAnomaly')
    withBackend(unread(), () => {
      const there = ones([2], { requiresGrad: true })
      expect(() => detectAnomaly(() => there.mul(2).sum().backward())).toThrow('await detectAnomalyAsync(fn)')
    })
  })
})

describe('detectAnomalyAsync', () => {
  it('finds it on devices that cannot be read at once, after the function', async () => {
    const backend = unread()
    const x = withBackend(backend, () => leaf([1, 0]))
    let done = false
    const step = () =>
      scope(() => {
        rootOfZero(x).mul(0).sum().backward()
        done = true
      })
    const error = (await detectAnomalyAsync(step).catch((e: unknown) => e)) as Error
    expect(error.message).toContain(
      'sqrt: in the backward pass the gradient of its input 0 became NaN ([2] → [2])',
    )
    expect(error.message).toContain('rootOfZero')
    expect(done).toBe(true)
    expect(await detectAnomalyAsync(() => 3)).toBe(3)
    await expect(detectAnomalyAsync(() => Promise.resolve(1))).rejects.toThrow('Await outside')
  })

  it('leaves nothing behind', async () => {
    const x = leaf([1, 0])
    await checkLeaks(() =>
      detectAnomalyAsync(() => scope(() => rootOfZero(x).mul(0).sum().backward())).catch(() => {}),
    )
    await checkLeaks(() => detectAnomalyAsync(() => scope(() => void x.mul(0).sum().backward())))
  })
})
