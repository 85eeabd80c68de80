// The map: points by plotly, labels and tooltip by us. Texts of documents go on screen as text content only.
(() => {
  'use strict';
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($('data').textContent);
  const plot = $('plot'), layer = $('labels'), tip = $('tip'), canvas = $('canvas');
  const n = data.x.length;
  const narrow = matchMedia('(max-width: 900px), (pointer: coarse)').matches;
  let chosen = null, found = null;

  // -- colours -------------------------------------------------------------------------------------------------
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = () => ({ hue: Array.from({ length: 10 }, (_, i) => css(`--c${i}`)), none: css('--none'), paper: css('--paper') });
  let colours = palette();
  const colourOf = (t) => (t < 0 || data.topics[t].colour < 0 ? colours.none : colours.hue[data.topics[t].colour]);
  const size = Math.max(2.6, Math.min(6, 260 / Math.sqrt(n))) * (narrow ? 0.8 : 1);

  // outliers are drawn first, so that topics lie on top
  const order = Array.from({ length: n }, (_, i) => i);
  const isOut = (i) => data.t[i] < 0 || data.topics[data.t[i]].outliers;
  order.sort((a, b) => isOut(b) - isOut(a) || a - b);

  const trace = (rows) => ({
    type: 'scatter', mode: 'markers', hoverinfo: 'none', customdata: rows,
    x: rows.map((i) => data.x[i]), y: rows.map((i) => data.y[i]),
    marker: { size, color: rows.map((i) => colourOf(data.t[i])), opacity: rows.map((i) => (isOut(i) ? 0.55 : 0.75)), line: { width: 0 } },
  });
  const layout = {
    margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, hovermode: 'closest', hoverdistance: 12,
    dragmode: narrow ? false : 'pan', paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    xaxis: { visible: false }, yaxis: { visible: false, scaleanchor: 'x' },
  };
  const whole = () => {
    // the whole map with a margin for labels, in the frame's proportions
    const span = (v) => [v.reduce((a, b) => Math.min(a, b)), v.reduce((a, b) => Math.max(a, b))];
    const [x0, x1] = span(data.x), [y0, y1] = span(data.y);
    const unit = Math.max((x1 - x0 || 1) / plot.clientWidth, (y1 - y0 || 1) / plot.clientHeight) * 1.08;
    const around = (a, b, pixels) => [(a + b) / 2 - (pixels * unit) / 2, (a + b) / 2 + (pixels * unit) / 2];
    return { 'xaxis.range': around(x0, x1, plot.clientWidth), 'yaxis.range': around(y0, y1, plot.clientHeight) };
  };

  // -- labels --------------------------------------------------------------------------------------------------
  const sized = data.topics.map((t, i) => i).filter((i) => data.topics[i].at && !data.topics[i].outliers);
  sized.sort((a, b) => data.topics[b].size - data.topics[a].size || a - b);
  const labels = new Map(sized.map((i, rank) => {
    const label = document.createElement('button');
    label.type = 'button';
    label.tabIndex = -1;
    label.textContent = data.topics[i].name;
    label.className = `c${data.topics[i].colour} ${rank < 8 ? 'large' : rank < 30 ? '' : 'small'}`;
    label.hidden = true;
    label.addEventListener('click', (event) => { event.stopPropagation(); select(i); });
    layer.append(label);
    return [i, { label, box: null, offset: null }];
  }));
  // a thin line from a label to its topic where it had to step aside
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const leaders = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  svg.append(leaders);
  layer.prepend(svg);
  const ranges = (event) => {
    const axis = (name) => {
      const full = plot._fullLayout[`${name}axis`].range;
      return event && `${name}axis.range[0]` in event ? [event[`${name}axis.range[0]`], event[`${name}axis.range[1]`]] : full;
    };
    return { x: axis('x'), y: axis('y') };
  };
  const pixel = ([x, y], r) => [
    ((x - r.x[0]) / (r.x[1] - r.x[0])) * plot.clientWidth,
    ((r.y[1] - y) / (r.y[1] - r.y[0])) * plot.clientHeight,
  ];
  // the middle first, then around it, nearest first
  const around = [[0, 0], [0, -1], [0, 1], [-0.6, 0], [0.6, 0], [-0.6, -1], [0.6, -1], [-0.6, 1], [0.6, 1], [0, -1.9], [0, 1.9], [-0.75, -1.9], [0.75, -1.9], [-0.75, 1.9], [0.75, 1.9]];
  const measure = () => {
    // write everything, then read everything: one layout pass
    for (const item of labels.values()) { item.label.hidden = false; item.label.style.visibility = 'hidden'; item.label.style.transform = 'none'; }
    for (const item of labels.values()) item.box = [item.label.offsetWidth, item.label.offsetHeight];
  };
  const place = () => {
    const r = ranges(), width = plot.clientWidth, height = plot.clientHeight, gap = 3;
    const taken = [[width - 44, 0, width, 112]]; // the buttons
    const first = chosen !== null && labels.has(chosen) ? [chosen] : [];
    const rest = sized.filter((i) => i !== chosen && (chosen !== null || found === null || found.has(i)));
    const show = [];
    for (const i of [...first, ...rest]) {
      const item = labels.get(i), [w, h] = item.box, [px, py] = pixel(data.topics[i].at, r);
      item.offset = null;
      if (px < 0 || py < 0 || px > width || py > height) continue;
      // beside what was chosen, not over it
      for (const [dx, dy] of i === chosen ? [[0, -1.3], [0, 1.3], ...around] : around) {
        const left = Math.min(Math.max(px + dx * w - w / 2, 2), width - w - 2), top = Math.min(Math.max(py + dy * h - h / 2, 2), height - h - 2);
        const box = [left - gap, top - gap, left + w + gap, top + h + gap];
        if (taken.some((t) => box[0] < t[2] && t[0] < box[2] && box[1] < t[3] && t[1] < box[3])) continue;
        taken.push(box);
        item.offset = [left - px, top - py];
        show.push(i);
        break;
      }
    }
    for (const [i, item] of labels) {
      item.label.hidden = item.offset === null || !show.includes(i);
      item.label.style.visibility = '';
      item.label.classList.toggle('chosen', i === chosen);
    }
    move(r);
  };
  const move = (r) => {
    let lines = '';
    for (const [i, item] of labels) {
      if (item.label.hidden) continue;
      const [px, py] = pixel(data.topics[i].at, r);
      const left = Math.round(px + item.offset[0]), top = Math.round(py + item.offset[1]);
      item.label.style.transform = `translate(${left}px, ${top}px)`;
      const x = Math.min(Math.max(px, left + 4), left + item.box[0] - 4), y = Math.min(Math.max(py, top + 1), top + item.box[1] - 1);
      if (Math.hypot(px - x, py - y) > 9) lines += `M${x.toFixed(1)} ${y.toFixed(1)}L${px.toFixed(1)} ${py.toFixed(1)}`;
    }
    leaders.setAttribute('d', lines);
  };

  // -- what is chosen ------------------------------------------------------------------------------------------
  const select = (t) => document.dispatchEvent(new CustomEvent('map-chose', { detail: t }));
  // by class on the drawn points: asking plotly to restyle 10,000 of them takes ten times as long
  const wanted = () => (chosen !== null ? new Set([chosen]) : found);
  const light = () => {
    const topics = wanted();
    for (const node of plot.querySelectorAll('.scatterlayer path.point')) {
      node.classList.toggle('lit', topics !== null && topics.has(data.t[order[node.__data__.i]]));
    }
  };
  const highlight = () => {
    canvas.classList.toggle('dimmed', wanted() !== null);
    canvas.classList.toggle('finding', chosen === null);
    light();
    place();
  };
  document.addEventListener('topic-chosen', (event) => { chosen = event.detail; highlight(); });
  document.addEventListener('topics-found', (event) => { found = event.detail && new Set(event.detail); highlight(); });
  document.addEventListener('theme-changed', () => {
    colours = palette();
    Plotly.restyle(plot, { 'marker.color': [order.map((i) => colourOf(data.t[i]))] }, [0]).then(highlight);
  });

  // -- tooltip -------------------------------------------------------------------------------------------------
  const showTip = (i, x, y) => {
    const topic = data.topics[data.t[i]];
    tip.querySelector('.swatch').className = `swatch ${topic && topic.colour >= 0 ? `c${topic.colour}` : 'c-none'}`;
    tip.querySelector('b').textContent = topic ? topic.name : 'No topic';
    tip.querySelector('p').textContent = data.s[i];
    tip.hidden = false;
    const left = x + 16 + tip.offsetWidth > innerWidth - 8 ? x - 16 - tip.offsetWidth : x + 16;
    const top = y + 14 + tip.offsetHeight > innerHeight - 8 ? y - 12 - tip.offsetHeight : y + 14;
    tip.style.transform = `translate(${Math.round(Math.max(8, left))}px, ${Math.round(Math.max(8, top))}px)`;
  };
  const hideTip = () => { tip.hidden = true; };

  const start = () => Plotly.newPlot(plot, [trace(order)], { ...layout, xaxis: { visible: false, range: whole()['xaxis.range'] }, yaxis: { visible: false, scaleanchor: 'x', range: whole()['yaxis.range'] } },
    { displayModeBar: false, scrollZoom: true, doubleClick: false, responsive: true, showTips: false }).then(() => {
    measure();
    place();
    plot.on('plotly_afterplot', () => { if (wanted() !== null) light(); place(); });
    plot.on('plotly_relayouting', (event) => { hideTip(); move(ranges(event)); });
    plot.on('plotly_hover', (event) => showTip(event.points[0].customdata, event.event.clientX, event.event.clientY));
    plot.on('plotly_unhover', hideTip);
    let pressed = null, hit = false;
    plot.addEventListener('pointerdown', (event) => { pressed = [event.clientX, event.clientY]; hit = false; }, true);
    plot.on('plotly_click', (event) => {
      hit = true;
      const t = data.t[event.points[0].customdata];
      if (t >= 0) select(t);
    });
    plot.on('plotly_doubleclick', () => Plotly.relayout(plot, whole()));
    // a click beside all points lets go of what was chosen
    canvas.addEventListener('click', (event) => {
      const still = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 4;
      // plotly tells of a point before the click itself arrives
      if (still && !hit && chosen !== null && plot.contains(event.target)) select(null);
    });
    document.documentElement.dataset.map = 'ready';
  });

  // -- zoom ----------------------------------------------------------------------------------------------------
  for (const control of document.querySelectorAll('.zoom button')) {
    control.addEventListener('click', () => {
      const factor = Number(control.dataset.zoom), r = ranges();
      const scale = ([a, b]) => [(a + b) / 2 - ((b - a) / 2) * factor, (a + b) / 2 + ((b - a) / 2) * factor];
      Plotly.relayout(plot, factor ? { 'xaxis.range': scale(r.x), 'yaxis.range': scale(r.y) } : whole());
    });
  }
  // the wheel scrolls the page unless Ctrl or ⌘ asks for the map
  let hint = 0;
  plot.addEventListener('wheel', (event) => {
    if (event.ctrlKey || event.metaKey) return;
    event.stopImmediatePropagation();
    $('hint').hidden = false;
    clearTimeout(hint);
    hint = setTimeout(() => { $('hint').hidden = true; }, 900);
  }, { capture: true, passive: true });
  canvas.addEventListener('pointerleave', hideTip);
  addEventListener('scroll', hideTip, { passive: true });
  addEventListener('resize', () => { measure(); place(); });
  start();
})();
