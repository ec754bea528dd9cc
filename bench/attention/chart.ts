import * as vega from 'vega'
import { compile, type TopLevelSpec } from 'vega-lite'
import type { Row } from './sweep.ts'

/** Time and memory of a training step against the length, both axes logarithmic, as SVG. */
export async function chart(rows: readonly Row[], title: string): Promise<string> {
  const values = rows
    .filter((row) => row.mode === 'training' && row.ms !== null)
    .map(({ variant, t, ms, bytes }) => ({ variant, t, ms, mib: (bytes ?? 0) / 2 ** 20 }))
  const names = [...new Set(values.map(({ variant }) => variant))]
  const panel = (field: 'ms' | 'mib', heading: string) => ({
    width: 360,
    height: 360,
    title: heading,
    mark: { type: 'line' as const, strokeWidth: 1.5 },
    encoding: {
      x: {
        field: 't',
        type: 'quantitative' as const,
        title: 'T (tokens)',
        scale: { type: 'log' as const, base: 2, nice: false },
        axis: { values: [...new Set(values.map(({ t }) => t))], format: ',', labelOverlap: true },
      },
      y: {
        field,
        type: 'quantitative' as const,
        title: field === 'ms' ? 'milliseconds' : 'MiB beyond the inputs',
        scale: { type: 'log' as const, base: 10, nice: false },
        axis: { values: [1, 10, 100, 1000, 10000], format: ',' },
      },
      color: {
        field: 'variant',
        type: 'nominal' as const,
        title: null,
        sort: names,
        scale: { scheme: 'tableau20' as const },
      },
      strokeDash: {
        condition: { test: "indexof(datum.variant, 'written out') >= 0", value: [4, 3] },
        value: [1, 0],
      },
    },
  })
  const spec: TopLevelSpec = {
    title,
    padding: 12,
    background: 'white',
    // Descriptions of every mark would be a quarter of the file.
    config: { aria: false },
    data: { values },
    hconcat: [panel('ms', 'time, forward + backward'), panel('mib', 'memory, forward + backward')],
  }
  const view = new vega.View(vega.parse(compile(spec).spec), { renderer: 'none' })
  try {
    // A tenth of a pixel is enough.
    return (await view.toSVG()).replace(/\d+\.\d{2,}/g, (number) => `${Number(Number(number).toFixed(1))}`)
  } finally {
    view.finalize()
  }
}
