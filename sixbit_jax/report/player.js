"use strict";
// Every section.player holds its data as JSON; this draws it and takes the controls.
(function () {
  function make(tag, parent, text) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }

  function canvas(parent, caption, width, height, scale) {
    const figure = make("figure", parent);
    const made = make("canvas", figure);
    made.width = width;
    made.height = height;
    made.style.width = width * scale + "px";
    made.style.height = height * scale + "px";
    make("figcaption", figure, caption);
    return made;
  }

  function start(section) {
    const data = JSON.parse(section.querySelector("script").textContent);
    const scale = Math.max(1, Math.round(256 / data.width));
    const steps = Math.max(
      0, ...data.videos.map((v) => (v.routes && v.routes[0] ? v.routes[0].length : 0)));
    let frame = 0, step = 0, playing = false, difference = false, last = 0, loaded = 0;

    make("h3", section, data.caption);
    const views = make("div", section);
    views.className = "row";
    const videos = data.videos.map(function (video) {
      const view = canvas(views, video.name, data.width, data.height, scale);
      const image = new Image();
      const shown = {video, view, image, context: view.getContext("2d", {willReadFrequently: true})};
      image.onload = function () { loaded += 1; draw(); };
      image.src = "data:image/png;base64," + video.strip;
      return shown;
    });
    const gap = data.videos.length > 1
      ? canvas(views, "", data.width, data.height, scale) : null;
    if (gap) gap.parentNode.hidden = true;

    const controls = make("div", section);
    controls.className = "controls";
    const back = button("\u25C0 frame", "one frame back", () => go(frame - 1));
    const play = button("Play", "play or pause", toggle);
    const next = button("frame \u25B6", "one frame on", () => go(frame + 1));
    const place = slider("frame", data.frames - 1, (value) => go(value));
    const label = make("output", controls);
    const differ = button("Difference", "difference from the first", swap);
    differ.hidden = !gap;
    differ.setAttribute("aria-pressed", "false");
    const gain = make("select", controls);
    gain.setAttribute("aria-label", "amplification of the difference");
    for (const factor of [1, 2, 4, 8]) make("option", gain, "\u00D7" + factor);
    gain.selectedIndex = 2;
    gain.hidden = true;
    gain.addEventListener("change", draw);

    const maps = make("div", section);
    maps.className = "row";
    const heats = videos.filter((v) => v.video.routes).map(function (shown) {
      const rows = shown.video.routes.length;
      const wide = Math.max(1, Math.round(320 / steps));
      const tall = Math.max(1, Math.round(160 / rows));
      const made = canvas(maps, "", steps * wide, rows * tall, 1);
      const caption = made.parentNode.querySelector("figcaption");
      return {shown, made, caption, wide, tall, context: made.getContext("2d")};
    });
    let steer = null;
    if (heats.length) {
      const more = make("div", section);
      more.className = "controls";
      make("span", more, "denoising step");
      steer = slider("denoising step", steps - 1, function (value) {
        step = value;
        draw();
      }, more);
    }
    make("p", section, "Keys: space plays, \u2190 \u2192 step, D difference, "
      + "[ ] denoising step.").className = "keys";

    function button(text, title, action) {
      const made = make("button", controls, text);
      made.type = "button";
      made.title = title;
      made.addEventListener("click", action);
      return made;
    }

    function slider(name, most, action, parent) {
      const made = make("input", parent || controls);
      made.type = "range";
      made.min = 0;
      made.max = most;
      made.value = 0;
      made.setAttribute("aria-label", name);
      made.addEventListener("input", () => action(Number(made.value)));
      return made;
    }

    function follow() {
      if (steps) step = Math.round(frame * (steps - 1) / Math.max(1, data.frames - 1));
    }

    function go(value) {
      playing = false;
      frame = (value + data.frames) % data.frames;
      follow();
      draw();
    }

    function toggle() {
      playing = !playing;
      last = performance.now();
      draw();
      if (playing) setTimeout(tick, 250 / data.fps);
    }

    function swap() {
      if (!gap) return;
      difference = !difference;
      draw();
    }

    function tick() {
      if (!playing) return;
      const now = performance.now();
      const passed = Math.floor((now - last) * data.fps / 1000);
      if (passed > 0) {
        last += passed * 1000 / data.fps;
        frame = (frame + passed) % data.frames;
        follow();
        draw();
      }
      setTimeout(tick, 250 / data.fps);
    }

    function draw() {
      if (loaded < videos.length) return;
      for (const shown of videos) {
        shown.context.drawImage(shown.image, 0, frame * data.height, data.width,
          data.height, 0, 0, data.width, data.height);
      }
      if (gap) {
        gap.parentNode.hidden = gain.hidden = !difference;
        differ.setAttribute("aria-pressed", String(difference));
        if (difference) drawDifference();
      }
      for (const heat of heats) drawHeat(heat);
      play.textContent = playing ? "Pause" : "Play";
      place.value = frame;
      if (steer) steer.value = step;
      label.textContent = "frame " + frame;
      section.dataset.frame = frame;
      section.dataset.step = step;
      section.dataset.playing = playing;
      section.dataset.difference = difference;
      section.dataset.ready = "true";
    }

    function drawDifference() {
      const [a, b] = [videos[0], videos[videos.length - 1]].map((shown) =>
        shown.context.getImageData(0, 0, data.width, data.height).data);
      const context = gap.getContext("2d", {willReadFrequently: true});
      const image = context.createImageData(data.width, data.height);
      const factor = [1, 2, 4, 8][gain.selectedIndex];
      for (let i = 0; i < image.data.length; i += 1) {
        image.data[i] = i % 4 === 3 ? 255 : Math.abs(a[i] - b[i]) * factor;
      }
      context.putImageData(image, 0, 0);
      gap.parentNode.querySelector("figcaption").textContent =
        videos[videos.length - 1].video.name + " \u2212 " + videos[0].video.name;
    }

    function drawHeat(heat) {
      const routes = heat.shown.video.routes;
      const context = heat.context;
      routes.forEach((row, y) => row.forEach(function (value, x) {
        context.fillStyle = data.colours[value] || "#ffffff";
        context.fillRect(x * heat.wide, y * heat.tall, heat.wide, heat.tall);
      }));
      context.fillStyle = "#000000";
      context.fillRect(step * heat.wide, 0, 1, heat.made.height);
      context.fillRect((step + 1) * heat.wide - 1, 0, 1, heat.made.height);
      const counts = [];
      data.names.forEach(function (name, value) {
        const count = routes.filter((row) => row[step] === value).length;
        if (count) counts.push(name + " " + count);
      });
      heat.caption.textContent = heat.shown.video.name + ", step " + step + ": "
        + counts.join(", ");
    }

    section.addEventListener("keydown", function (event) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const tag = event.target.tagName;
      if (event.key === " " && tag !== "BUTTON") toggle();
      else if (event.key === "ArrowLeft" && tag !== "INPUT") go(frame - 1);
      else if (event.key === "ArrowRight" && tag !== "INPUT") go(frame + 1);
      else if (event.key === "d" || event.key === "D") swap();
      else if ((event.key === "[" || event.key === "]") && steps) {
        step = Math.min(steps - 1, Math.max(0, step + (event.key === "]" ? 1 : -1)));
        draw();
      } else return;
      event.preventDefault();
    });
  }

  document.querySelectorAll("section.player").forEach(start);
})();
