import plot from 'simple-ascii-chart'
import type { TopLevelSpec } from 'vega-lite'
import type { Corpus } from './corpus.ts'
import type { Options } from './options.ts'
import type { Point, Run } from './train.ts'

/** Averages neighbours so that at most `most` points remain. */
export function thin(points: readonly Point[], most: number): Point[] {
  const size = Math.ceil(points.length / most)
  const out: Point[] = []
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size)
    const mean = (f: (p: Point) => number): number => part.reduce((s, p) => s + f(p), 0) / part.length
    out.push({ step: Math.round(mean((p) => p.step)), loss: mean((p) => p.loss) })
  }
  return out
}

/** The run as a picture: training and validation loss, and the bigram entropy as a line to beat. */
export async function lossCurve(run: Run, bigramEntropy: number, title: string): Promise<string> {
  // Loaded when there is something to draw: they take as long to load as many steps to train.
  const [vega, { compile }] = await Promise.all([import('vega'), import('vega-lite')])
  const rows = [
    ...thin(run.training, 300).map((p) => ({ ...p, curve: 'training' })),
    ...run.validation.map((p) => ({ ...p, curve: 'held-out text' })),
  ]
  const spec: TopLevelSpec = {
    title,
    width: 640,
    height: 340,
    padding: 12,
    background: 'white',
    layer: [
      {
        data: { values: rows },
        mark: { type: 'line', strokeWidth: 2 },
        encoding: {
          x: { field: 'step', type: 'quantitative', title: 'step' },
          y: {
            field: 'loss',
            type: 'quantitative',
            title: 'loss (nats per character)',
            scale: { zero: false },
          },
          color: { field: 'curve', type: 'nominal', title: null, scale: { range: ['#d9480f', '#9ec5e8'] } },
        },
      },
      {
        data: { values: [{ y: bigramEntropy }] },
        mark: { type: 'rule', strokeDash: [5, 4], color: '#666' },
        encoding: { y: { field: 'y', type: 'quantitative' } },
      },
      {
        data: { values: [{ y: bigramEntropy, text: `bigram entropy ${bigramEntropy.toFixed(2)}` }] },
        mark: { type: 'text', align: 'right', dy: -7, x: 636, color: '#666' },
        encoding: { y: { field: 'y', type: 'quantitative' }, text: { field: 'text' } },
      },
    ],
  }
  const view = new vega.View(vega.parse(compile(spec).spec), { renderer: 'none' })
  try {
    return await view.toSVG()
  } finally {
    view.finalize()
  }
}

/** The curves for a terminal of so many columns. */
export function terminalCurve(run: Run, width: number, colors: boolean): string {
  const line = (points: readonly Point[]): [number, number][] => points.map((p) => [p.step, p.loss])
  const columns = Math.max(30, Math.min(90, width - 12))
  const training = thin(run.training, columns)
  if (training.length < 2) return ''
  const curves = [line(training), line(run.validation)]
  const last = run.steps
  const ticks = [0, 1, 2, 3, 4].map((i) => Math.round((i * last) / 4))
  const size = { width: columns, height: 12, customXAxisTicks: ticks }
  if (!colors) return plot(curves, { ...size, title: 'loss: training, and in steps on held-out text' })
  return plot(curves, {
    ...size,
    color: ['ansiBlue', 'ansiRed'],
    title: 'loss (blue: training, red: held-out text)',
  })
}

/** What a run was and how it went, as JSON. */
export const report = (run: Run, corpus: Corpus, options: Options, bigramEntropy: number | null): string =>
  `${JSON.stringify(
    {
      corpus: corpus.name,
      options,
      alphabet: corpus.alphabet.join(''),
      steps: run.steps,
      trainSeconds: run.trainSeconds,
      peakBytes: run.peakBytes,
      heldOutLoss: run.validation.at(-1)?.loss ?? null,
      bigramEntropy,
      training: run.training,
      validation: run.validation,
    },
    null,
    1,
  )}\n`
